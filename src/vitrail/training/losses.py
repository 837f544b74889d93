"""The training losses, by name in a recipe.

To add one, write its functions, add a row to `LOSSES`, and its name to `LossName` in `recipe.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A loss for single-label classification."""

    # (logits (B, Y) float32, targets (B,) int64 or (B, Y) probabilities, label smoothing) -> mean over the batch
    compute: Callable[[Tensor, Tensor, float], Tensor]
    # (images per class (Y,), label smoothing) -> the lowest loss of a model that ignores the image
    chance_level: Callable[[np.ndarray, float], float]


def cross_entropy(logits_BY: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy with label smoothing."""
    return F.cross_entropy(logits_BY, targets, label_smoothing=smoothing)


def class_entropy(class_counts_Y: np.ndarray, smoothing: float) -> float:
    """Entropy of the smoothed class frequencies, in nats."""
    frequencies = class_counts_Y / class_counts_Y.sum() * (1 - smoothing) + smoothing / len(class_counts_Y)
    frequencies = frequencies[frequencies > 0]
    return float(-(frequencies * np.log(frequencies)).sum())


LOSSES: dict[str, Loss] = {"cross_entropy": Loss(cross_entropy, class_entropy)}
