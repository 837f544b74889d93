"""A classifier's answers on a set of images, from which every metric is computed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from vitrail.classifier import Classifier
from vitrail.data import Images
from vitrail.data.loader import evaluation_batches


@dataclass(frozen=True)
class Outcome:
    """For each image its true class and the logits: labels (n,), logits (n, Y)."""

    paths: list[str]  # of files, else the images' names
    labels: np.ndarray
    logits: np.ndarray
    classes: tuple[str, ...]

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, (n, Y)."""
        powers = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return shares

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each image, (n,)."""
        best: np.ndarray = self.logits.argmax(axis=1)
        return best

    @property
    def losses(self) -> np.ndarray:
        """Cross-entropy of each image in nats, (n,)."""
        highest = self.logits.max(axis=1)
        log_sum = highest + np.log(np.exp(self.logits - highest[:, None]).sum(axis=1))
        losses: np.ndarray = log_sum - self.logits[np.arange(len(self.labels)), self.labels]
        return losses

    @property
    def accuracy(self) -> float:
        """The part of the images whose most probable class is the true one."""
        return float((self.predicted == self.labels).mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(self.losses.mean())


def classify(
    classifier: Classifier,
    images: Images,
    *,
    batch: int = 256,
    workers: int | None = None,
    tick: Callable[[int], object] = lambda n: None,
) -> Outcome:
    """The classifier's logits for every image, in order; `tick` is called with the images done in each batch.

    Raises `ImageError` naming a file that cannot be read.
    """
    logits = []
    for pixels, _ in evaluation_batches(images, classifier.preprocess, batch=batch, workers=workers):
        logits.append(classifier.logits(pixels).cpu())
        tick(len(pixels))
    return Outcome(images.paths, images.labels, torch.cat(logits).double().numpy(), classifier.classes)
