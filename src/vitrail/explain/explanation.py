"""Weights + image -> a map on the patch grid, with what made it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.errors import UsageError, did_you_mean
from vitrail.explain.attention import attention_map, rollout
from vitrail.explain.recording import Record, recording
from vitrail.model import ViTConfig


@dataclass(frozen=True)
class Method:
    """A row of the table of methods: what it is, how it makes (B, T) weights, whether it knows the class."""

    about: str
    weigh: Callable[..., Tensor]
    class_blind: bool
    by_head: bool


METHODS: dict[str, Method] = {
    "attention": Method("one layer's attention, the last unless said", attention_map, class_blind=True, by_head=True),
    "rollout": Method("attention followed through all layers", rollout, class_blind=True, by_head=False),
}
DEFAULT = "attention"


@dataclass(frozen=True)
class Explanation:
    """A map (h, w) over the patches of an image, which sums to what the patches got of the whole.

    `image` is what the model saw, uint8 (H, W, C); `label` is the predicted class.
    """

    map: np.ndarray
    label: str
    probability: float
    method: str
    layer: int
    head: int | None
    class_blind: bool
    image: np.ndarray

    def save(self, path: str | Path) -> Path:
        """Writes image, map and overlay side by side as PNG (or SVG, by the name)."""
        from vitrail.explain.render import save_explanation

        return save_explanation(self, Path(path))

    def to_json(self) -> dict[str, Any]:
        """The map and what made it."""
        return {
            "label": self.label,
            "probability": self.probability,
            "method": self.method,
            "layer": self.layer,
            "head": self.head,
            "class_blind": self.class_blind,
            "map": [[round(value, 6) for value in row] for row in self.map.tolist()],
        }


def explain(
    classifier: Classifier,
    image: str | Path | Tensor,
    *,
    method: str = DEFAULT,
    layer: int = -1,
    head: int | None = None,
) -> Explanation:
    """What the classifier looks at in one image: a file, or uint8 pixels (C, h, w).

    `layer` and `head` count from 0 (layers also from -1 backwards); without `head` all are averaged. Raises
    `UsageError` for a method, layer or head that is not there, `ImageError` for an image that cannot be read.
    """
    return explain_batch(classifier, classifier.read(image).unsqueeze(0), method=method, layer=layer, head=head)[0]


def explain_batch(
    classifier: Classifier, pixels_BCHW: Tensor, *, method: str = DEFAULT, layer: int = -1, head: int | None = None
) -> list[Explanation]:
    """An explanation for each image of a batch of uint8 pixels of the model's size."""
    config = classifier.vit.config
    row = find_method(method, config, layer, head)
    with torch.inference_mode(), recording(classifier.vit) as record:
        probabilities_BY = classifier.logits(pixels_BCHW).softmax(dim=1)
        weights_BP = weights(row, record, config, layer, head)[:, config.prefix_tokens :]
    h, w = (side // config.patch for side in pixels_BCHW.shape[-2:])
    probability_B, best_B = probabilities_BY.max(dim=1)
    return [
        Explanation(
            map=weights_BP[i].view(h, w).cpu().numpy(),
            label=classifier.classes[int(best_B[i])],
            probability=float(probability_B[i]),
            method=method,
            layer=layer % config.depth,
            head=head,
            class_blind=row.class_blind,
            image=pixels_BCHW[i].permute(1, 2, 0).cpu().numpy(),
        )
        for i in range(len(pixels_BCHW))
    ]


def weights(row: Method, record: Record, config: ViTConfig, layer: int, head: int | None) -> Tensor:
    """The method's (B, T) weights of a recorded forward."""
    options = {"head": head} if row.by_head else {}
    return row.weigh(record, config, layer=layer, **options)


def find_method(method: str, config: ViTConfig, layer: int, head: int | None) -> Method:
    """The row of this name, if the model has such a layer and head; else `UsageError`."""
    if method not in METHODS:
        raise UsageError(f"there is no method {method!r}", did_you_mean(method, METHODS))
    if not -config.depth <= layer < config.depth:
        raise UsageError(f"there is no layer {layer}", f"the model has {config.depth}, from 0 to {config.depth - 1}")
    if head is not None and not METHODS[method].by_head:
        raise UsageError(f"{method} mixes all heads, so it takes no head", "use attention to see a single head")
    if head is not None and not 0 <= head < config.heads:
        raise UsageError(f"there is no head {head}", f"the model has {config.heads}, from 0 to {config.heads - 1}")
    return METHODS[method]
