"""Weights + image -> a map on the patch grid, with what made it."""

import base64
import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.classifier import Classifier, NonFiniteOutput
from vitrail.errors import UsageError, did_you_mean
from vitrail.explanation.methods import DEFAULT, METHODS, check_options, find_method
from vitrail.explanation.scene import Aim, Scene, undisturbed

Target = str | tuple[str, str] | None  # a class; this one rather than that one; the predicted one
PIECE_TOKENS = 1 << 14  # tokens that are explained at once: a long batch does not take more memory


@dataclass(frozen=True)
class Explanation:
    """A map (h, w) over the patches of an image: what speaks for `label`, or for it rather than for `against`.

    A class-blind method's map only says where the model looks. In a signed map what is below zero speaks against the
    class. `probability` is the label's; `predicted` is the model's own answer; `image` is what the model saw, uint8
    (H, W, C). `layer`, `head` and `query` are None where the method takes none, or where all heads are averaged. A
    model without classes has class-blind maps alone, with an empty label and no number as probability.
    """

    map: np.ndarray
    label: str
    probability: float
    method: str
    image: np.ndarray = field(repr=False)
    predicted: str = ""
    against: str | None = None
    layer: int | None = None
    head: int | None = None
    query: tuple[int, int] | None = None

    @property
    def class_blind(self) -> bool:
        """Whether the map is the same whatever class is asked for."""
        return METHODS[self.method].class_blind

    @property
    def signed(self) -> bool:
        """Whether the map has evidence against the class too, below zero."""
        return METHODS[self.method].signed

    @property
    def cost(self) -> str:
        """Passes through the model that the map took, in words."""
        return METHODS[self.method].cost

    @property
    def question(self) -> str:
        """What the map answers, in words."""
        if self.query is not None:
            return f"what row {self.query[0]}, column {self.query[1]} attends to"
        if self.class_blind:
            return "where the model looks"
        rather = f" rather than {self.against}" if self.against is not None else ""
        return f"what speaks for {self.label}{rather}"

    @property
    def summary(self) -> str:
        """The map in a sentence, for those who cannot see it."""
        return summary(self)

    def save(self, path: str | Path, smooth: bool = False) -> Path:
        """Writes image, map and overlay side by side as PNG (or SVG, by the name).

        `smooth` blurs the patches' edges, which is only for the eye: the map is as coarse as its patches.
        """
        from vitrail.explanation.pictures import save_explanation

        return save_explanation(self, Path(path), smooth)

    def _repr_png_(self) -> bytes:
        from vitrail.explanation.pictures import png_of

        return png_of(self)

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self._repr_png_()).decode()
        text = html.escape(self.summary)
        return (
            f'<figure><img alt="{text}" src="data:image/png;base64,{picture}"><figcaption>{text}</figcaption></figure>'
        )

    def to_json(self) -> dict[str, Any]:
        """The map and what made it."""
        return {
            "label": self.label,
            "probability": None if math.isnan(self.probability) else self.probability,
            "predicted": self.predicted,
            "against": self.against,
            "method": self.method,
            "layer": self.layer,
            "head": self.head,
            "query": None if self.query is None else list(self.query),
            "class_blind": self.class_blind,
            "signed": self.signed,
            "cost": self.cost,
            "map": [[round(value, 6) for value in row] for row in self.map.tolist()],
        }


def summary(explanation: Explanation) -> str:
    """In how many patches half of the positive evidence lies, and in which ninth of the image the most."""
    positive_hw = np.maximum(explanation.map, 0)
    total = positive_hw.sum()
    sure = "" if math.isnan(explanation.probability) else f"{explanation.probability:.0%}, "
    start = f"{explanation.question} ({sure}{explanation.method}): "
    if total == 0:
        return start + "nothing in the image"
    shares = np.sort(positive_hw.ravel())[::-1].cumsum() / total
    few = int((shares < 0.5).sum()) + 1
    h, w = positive_hw.shape
    ninths = {
        f"{row} {column}": float(part.sum())
        for row, band in zip(("upper", "middle", "lower"), np.array_split(positive_hw, 3, axis=0), strict=True)
        for column, part in zip(("left", "centre", "right"), np.array_split(band, 3, axis=1), strict=True)
    }
    place = max(ninths, key=ninths.__getitem__)
    return start + f"half of it lies in {few} of {h * w} patches, most in the {place} ({ninths[place] / total:.0%})"


def explain(
    classifier: Classifier, image: str | Path | Tensor, *, target: Target = None, **options: Any
) -> Explanation:
    """What speaks for a class in one image: a file, or uint8 pixels (C, h, w); options as in `explain_batch`.

    `target` is a class, a pair (this, that) for "this rather than that", or None for the predicted class.
    """
    return explain_batch(classifier, classifier.read_image(image).unsqueeze(0), target=target, **options)[0]


def explain_batch(
    classifier: Classifier,
    pixels_BCHW: Tensor,
    *,
    method: str = DEFAULT,
    target: Target | Sequence[Target] = None,
    layer: int | None = None,
    head: int | None = None,
    query: tuple[int, int] | None = None,
) -> list[Explanation]:
    """An explanation for each image of a batch of uint8 pixels of the model's size.

    `target` is one for all images, or a list with one for each. `layer` and `head` count from 0 (layers also from -1
    backwards); without `head` all are averaged; `query` is the row and column of a patch whose attention is wanted.
    The model is left as it was. Raises `UsageError` for a class, method, layer, head or patch that is not there, or an
    option that the method does not take.
    """
    classifier.require_plain_weights("explain")
    config = classifier.vit.config
    row = find_method(method)
    h, w = (side // config.patch for side in pixels_BCHW.shape[-2:])
    options = check_options(method, config, (h, w), layer, head, query)
    if target is not None or not row.class_blind:
        classifier.require_classes()
    targets = [read_target(classifier.classes, each) for each in per_image(target, len(pixels_BCHW))]
    depth_layer = None if "layer" not in row.takes else (-1 if layer is None else layer) % config.depth
    found: list[Explanation] = []
    for at, piece in pieces(pixels_BCHW, h * w):
        wanted = targets[at : at + len(piece)]
        with undisturbed(classifier.vit), torch.inference_mode(False):
            scene = open_scene(classifier, piece, wanted)
            map_BP, logits_BY = row.run(scene, **options)
        if not (logits_BY.isfinite().all() and map_BP.isfinite().all()):
            raise NonFiniteOutput(
                "the model's answers are not finite numbers", "its weights are damaged; train it again"
            )
        names = classifier.classes or [""] * logits_BY.shape[1]
        probabilities_BY = (logits_BY / classifier.temperature).softmax(dim=1)
        if not classifier.classes:
            probabilities_BY = torch.full_like(logits_BY, torch.nan)
        best_B = logits_BY.argmax(dim=1).tolist()
        for i, (pair, best) in enumerate(zip(wanted, best_B, strict=True)):
            this, that = pair or (best, None)
            found.append(
                Explanation(
                    map=map_BP[i].detach().view(h, w).cpu().numpy(),
                    label=names[this],
                    probability=float(probabilities_BY[i, this]),
                    method=method,
                    image=piece[i].permute(1, 2, 0).cpu().numpy(),
                    predicted=names[best],
                    against=None if that is None else names[that],
                    layer=depth_layer,
                    head=head,
                    query=query,
                )
            )
    return found


def open_scene(classifier: Classifier, pixels_BCHW: Tensor, targets: Sequence[tuple[int, int | None] | None]) -> Scene:
    """The batch behind the embedding, aimed at these classes (None: at the predicted one)."""
    vit = classifier.vit
    if next(vit.parameters()).is_inference():
        raise UsageError("the weights were made under torch.inference_mode", "load the model outside of it")
    grey = torch.zeros(1, *pixels_BCHW.shape[1:], device=classifier.device, dtype=vit.prefix.dtype)
    with torch.inference_mode(False), torch.no_grad():
        x_BTD = vit.embed(classifier.normalize(pixels_BCHW))
        return Scene(vit, x_BTD, grid_of(classifier, pixels_BCHW), aim_at(targets), vit.embed(grey))


def grid_of(classifier: Classifier, pixels_BCHW: Tensor) -> tuple[int, int]:
    """Patches down and across."""
    patch = classifier.vit.config.patch
    return pixels_BCHW.shape[-2] // patch, pixels_BCHW.shape[-1] // patch


def aim_at(targets: Sequence[tuple[int, int | None] | None]) -> Aim:
    """The logits of the intact images -> 1 at the asked class, or the best, and -1 at the one it is held against."""

    def aim(logits_BY: Tensor) -> Tensor:
        weights_BY = torch.zeros_like(logits_BY)
        for i, (pair, best) in enumerate(zip(targets, logits_BY.argmax(dim=1).tolist(), strict=True)):
            this, that = pair or (best, None)
            weights_BY[i, this] = 1
            if that is not None:
                weights_BY[i, that] -= 1
        return weights_BY

    return aim


def per_image(target: Target | Sequence[Target], images: int) -> list[Target]:
    """One target for each image."""
    if not isinstance(target, list):
        return [target] * images  # type: ignore[list-item]
    if len(target) != images:
        raise UsageError(f"there are {len(target)} targets for {images} images")
    return target


def read_target(classes: tuple[str, ...], target: Target) -> tuple[int, int | None] | None:
    """Class names -> numbers; raises `UsageError` for a class that the model does not know."""
    if target is None:
        return None
    this, that = (target, None) if isinstance(target, str) else target
    if this == that:
        raise UsageError(f"{this!r} is held against itself", "name two classes")
    return class_number(classes, this), None if that is None else class_number(classes, that)


def class_number(classes: tuple[str, ...], label: str) -> int:
    """The place of a class."""
    if label not in classes:
        raise UsageError(f"the model knows no class {label!r}", did_you_mean(label, classes))
    return classes.index(label)


def piece_size(patches: int) -> int:
    """How many images of so many patches are taken at once."""
    return max(1, PIECE_TOKENS // patches)


def pieces(pixels_BCHW: Tensor, patches: int) -> Iterator[tuple[int, Tensor]]:
    """The batch in pieces that fit into memory, each with the place of its first image."""
    size = piece_size(patches)
    for at in range(0, len(pixels_BCHW), size):
        yield at, pixels_BCHW[at : at + size]
