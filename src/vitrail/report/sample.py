"""The images that a report looks at. Each image of the scored split is decoded once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitrail.data.images import Images
from vitrail.data.preprocess import Preprocess
from vitrail.evaluation.corruptions import draw_images
from vitrail.evaluation.outcome import Outcome
from vitrail.evaluation.properties import PROPERTIES, measure_properties
from vitrail.report.subject import SampleSizes
from vitrail.report.thumbnails import make_thumbnail

NO_IMAGES = np.zeros(0, dtype=int)


@dataclass(frozen=True)
class Selection:
    """Indices of the scored images that each part of the report uses."""

    mistakes: np.ndarray  # worst first
    attribution: np.ndarray
    properties: np.ndarray
    embedding: np.ndarray
    corruptions: np.ndarray


@dataclass(frozen=True)
class Sample:
    """The selected images: fitted uint8 pixels (C, H, W), thumbnails (h, w, 3), and properties (n,) of all of them.

    Pixels and thumbnails are by image index. Images that are selected for their properties alone have no pixels.
    """

    selection: Selection
    pixels: dict[int, Tensor]
    thumbnails: dict[int, np.ndarray]
    properties: dict[str, np.ndarray]  # of selection.properties

    def batch(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Returns the fitted pixels of these images, (n, C, H, W)."""
        return torch.stack([self.pixels[int(i)] for i in indices])


def select_images(outcome: Outcome, sizes: SampleSizes) -> Selection:
    """Draws the images of each part. The draws depend on the outcome and the sizes only."""
    n = len(outcome.labels)
    return Selection(
        mistakes=worst_mistakes(outcome, sizes.mistakes),
        attribution=balance_classes(outcome.predicted, sizes.attribution, seed=0),
        properties=np.sort(np.random.Generator(np.random.Philox(0)).permutation(n)[: sizes.properties]),
        embedding=np.sort(np.random.Generator(np.random.Philox(1)).permutation(n)[: sizes.embedding]),
        corruptions=draw_images(n, sizes.corruptions) if sizes.corruptions else NO_IMAGES,
    )


def worst_mistakes(outcome: Outcome, max_images: int) -> np.ndarray:
    """Returns the misclassified images with the highest loss, worst first."""
    wrong = np.flatnonzero(~outcome.correct)
    return wrong[np.argsort(-outcome.losses[wrong], kind="stable")][:max_images]


def balance_classes(labels: np.ndarray, max_images: int, seed: int) -> np.ndarray:
    """Returns sorted indices of at most `max_images` images, drawn at random, about equally many of each label."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(labels))
    rank = np.zeros(len(labels), dtype=int)  # of an image among the drawn images of its label
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:max_images])


def read_sample(images: Images, preprocess: Preprocess, selection: Selection, thumbnails: Sequence[int]) -> Sample:
    """Decodes every selected image once. `thumbnails` are the images that need a thumbnail.

    Raises `ImageError` for an unreadable image.
    """
    parts = (selection.mistakes, selection.attribution, selection.embedding, selection.corruptions)
    needs_pixels = set(np.concatenate(parts).tolist())
    needs_thumbnail = set(thumbnails)
    needs_properties = set(selection.properties.tolist())
    pixels: dict[int, Tensor] = {}
    tiles: dict[int, np.ndarray] = {}
    properties: list[tuple[float, ...]] = []
    for i in sorted(needs_pixels | needs_thumbnail | needs_properties):
        image = images[i]
        fitted = preprocess.fit_image(image)
        if i in needs_pixels:
            pixels[i] = fitted
        if i in needs_thumbnail:
            tiles[i] = make_thumbnail(fitted)
        if i in needs_properties:
            properties.append(measure_properties(image, fitted))
    columns = np.array(properties).reshape(-1, len(PROPERTIES)).T
    return Sample(selection, pixels, tiles, dict(zip(PROPERTIES, columns, strict=True)))
