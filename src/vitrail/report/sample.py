"""The images that a report looks at. Each image of the scored split is decoded once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vitrail.data.decode import ImageError
from vitrail.data.images import Images
from vitrail.data.loader import default_workers, load_batches
from vitrail.data.preprocess import Preprocess
from vitrail.evaluation.corruptions import draw_images
from vitrail.evaluation.outcome import Outcome
from vitrail.evaluation.properties import PROPERTIES, measure_properties
from vitrail.report.subject import SampleSizes
from vitrail.report.thumbnails import make_thumbnail

READ_IMAGES = 32  # that a worker reads at a time
NO_IMAGES = np.zeros(0, dtype=int)


@dataclass(frozen=True)
class Selection:
    """Indices of the scored images that each part of the report uses."""

    mistakes: np.ndarray  # worst first
    attribution: np.ndarray
    properties: np.ndarray
    embedding: np.ndarray
    corruptions: np.ndarray
    faithfulness: np.ndarray

    @property
    def with_pixels(self) -> tuple[np.ndarray, ...]:
        """The images of the parts that need pixels."""
        return self.mistakes, self.attribution, self.embedding, self.corruptions, self.faithfulness


@dataclass(frozen=True)
class Sample:
    """The selected images: fitted uint8 pixels (C, H, W), thumbnails (h, w, 3), and properties (n,) of all of them.

    Pixels, thumbnails and sizes (height and width before the image is fitted) are by image index. Images that are
    selected for their properties alone have no pixels.
    """

    selection: Selection
    pixels: dict[int, Tensor]
    sizes: dict[int, tuple[int, int]]
    thumbnails: dict[int, np.ndarray]
    properties: dict[str, np.ndarray]  # of selection.properties

    def batch(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Returns the fitted pixels of these images, (n, C, H, W)."""
        return torch.stack([self.pixels[int(i)] for i in indices])

    def subset(self, images: Images, indices: np.ndarray) -> Images:
        """Returns these of the scored images with the fitted pixels, which need not be decoded again."""
        chosen = images.subset(indices)
        return replace(chosen, pixels=self.batch(indices)) if len(indices) else chosen


def select_images(outcome: Outcome, sizes: SampleSizes) -> Selection:
    """Draws the images of each part. The draws depend on the outcome and the sizes only."""
    n = len(outcome.labels)
    return Selection(
        mistakes=worst_mistakes(outcome, sizes.mistakes),
        attribution=balance_classes(outcome.predicted, sizes.attribution, seed=0),
        properties=np.sort(np.random.Generator(np.random.Philox(0)).permutation(n)[: sizes.properties]),
        embedding=np.sort(np.random.Generator(np.random.Philox(1)).permutation(n)[: sizes.embedding]),
        corruptions=draw_images(n, sizes.corruptions) if sizes.corruptions else NO_IMAGES,
        faithfulness=draw_images(n, sizes.faithfulness) if sizes.faithfulness else NO_IMAGES,
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


class SampleReader(Dataset["tuple[ImageGroup, list[ImageError]]"]):
    """Reads groups of images, each once, and returns of each image what the report needs of it."""

    def __init__(
        self, images: Images, preprocess: Preprocess, pixels: set[int], thumbnails: set[int], properties: set[int]
    ):
        self.images = images
        self.preprocess = preprocess
        self.pixels = pixels
        self.thumbnails = thumbnails
        self.properties = properties

    def __getitem__(self, indices: np.ndarray) -> "tuple[ImageGroup, list[ImageError]]":
        group = ImageGroup({}, {}, {}, [])
        for i in indices.tolist():
            try:
                image = self.images[i]
                fitted = self.preprocess.fit_image(image)
            except ImageError as error:
                return group, [error]
            except ValueError as error:
                return group, [ImageError(self.images.paths[i], str(error))]
            if i in self.pixels:
                group.sizes[i] = (image.shape[-2], image.shape[-1])
                group.pixels[i] = fitted.numpy()  # an array, since every tensor from a worker needs a file handle
            if i in self.thumbnails:
                group.thumbnails[i] = make_thumbnail(self.preprocess.to_picture(fitted))
            if i in self.properties:
                group.properties.append(measure_properties(*map(self.preprocess.to_picture, (image, fitted))))
        return group, []


class ImageGroup(NamedTuple):
    """What was read of some images: fitted pixels (C, H, W), sizes and thumbnails (h, w, 3) by index; properties."""

    pixels: dict[int, np.ndarray]
    sizes: dict[int, tuple[int, int]]
    thumbnails: dict[int, np.ndarray]
    properties: list[tuple[float, ...]]


def read_sample(
    images: Images,
    preprocess: Preprocess,
    selection: Selection,
    thumbnails: Sequence[int],
    workers: int | None = None,
) -> Sample:
    """Decodes every selected image once, in worker processes if they are files. `thumbnails` need a thumbnail.

    Raises `ImageError` for an unreadable image.
    """
    needs_pixels = set(np.concatenate(selection.with_pixels).tolist())
    needs_thumbnail = set(thumbnails)
    needs_properties = set(selection.properties.tolist())
    reader = SampleReader(images, preprocess, needs_pixels, needs_thumbnail, needs_properties)
    indices = np.array(sorted(needs_pixels | needs_thumbnail | needs_properties), dtype=np.int64)
    groups = np.array_split(indices, range(READ_IMAGES, len(indices), READ_IMAGES)) if len(indices) else []
    pixels: dict[int, Tensor] = {}
    sizes: dict[int, tuple[int, int]] = {}
    tiles: dict[int, np.ndarray] = {}
    properties: list[tuple[float, ...]] = []
    workers = default_workers(images) if workers is None else workers
    for group in load_batches(reader, groups, workers if len(indices) > READ_IMAGES else 0):
        pixels |= {i: torch.from_numpy(array) for i, array in group.pixels.items()}
        sizes |= group.sizes
        tiles |= group.thumbnails
        properties += group.properties
    columns = np.array(properties).reshape(-1, len(PROPERTIES)).T
    return Sample(selection, pixels, sizes, tiles, dict(zip(PROPERTIES, columns, strict=True)))
