"""A set of labeled images, in memory or decoded on access, with one interface."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vitrail.data.decode import ImageError
from vitrail.data.encoded import EncodedImages
from vitrail.data.preprocess import ImageSizeError, Preprocess
from vitrail.data.strings import take_strings
from vitrail.tasks import SINGLE_LABEL, TaskName

Pixels = Sequence[Tensor] | Tensor  # indexing gives (C, H, W): uint8, or float32 with the values of bands
PROBE_IMAGES = 64  # after this many images the memory of the whole set is estimated


@dataclass(frozen=True)
class LazyImages(Sequence[Tensor]):
    """A selection of images, each read and converted on access."""

    pixels: Sequence[Tensor]
    indices: Sequence[int] | np.ndarray
    convert: Callable[[Tensor], Tensor] | None = None

    def __getitem__(self, i: int) -> Tensor:  # type: ignore[override]
        pixels = self.pixels[int(self.indices[i])]
        return self.convert(pixels) if self.convert else pixels

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Images:
    """Images with names and labels. Indexing gives pixels (C, H, W): uint8, or float32 with the values of bands.

    `labels` are int64 (n,), indices of `classes`; with several labels per image uint8 (n, Y), 1 for each label. Numbers
    are float64 (n, Y), and `classes` are their names.
    """

    pixels: Pixels
    names: Sequence[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    locations: Sequence[str] | None = None  # where each image was read from, also after loading it into memory
    groups: Sequence[str] | None = None  # of images that belong together
    task: TaskName = SINGLE_LABEL

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Tensor:
        return self.pixels[i]

    @property
    def paths(self) -> Sequence[str]:
        """The locations of the images, or their names if they have no locations."""
        return self.names if self.locations is None else self.locations

    @property
    def is_in_memory(self) -> bool:
        """Whether the images are decoded in memory, so that reading one costs nothing."""
        return isinstance(self.pixels, Tensor | list)

    def read_size(self, i: int) -> tuple[int, int]:
        """Returns height and width of an image, without decoding it if it is encoded."""
        if isinstance(self.pixels, EncodedImages):
            return self.pixels.read_size(i)
        height, width = self[i].shape[-2:]
        return height, width

    def count_by_class(self) -> dict[str, int]:
        """Returns the number of images of each class, or with each label."""
        counts = count_labels(self.labels, len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def load_batch(self, preprocess: Preprocess, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Returns these images at the model's size, (B, C, H, W); raises `ImageError`."""
        return self.load_sized_batch(preprocess, indices)[0]

    def load_sized_batch(
        self, preprocess: Preprocess, indices: Sequence[int] | np.ndarray
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Returns what `load_batch` does, and height and width of each image before it is fitted."""
        pixels, sizes = [], []
        for i in indices:
            image_CHW = self[int(i)]
            try:
                pixels.append(preprocess.fit_image(image_CHW))
            except ImageSizeError as error:
                raise ImageError(self.paths[int(i)], str(error)) from None
            sizes.append((image_CHW.shape[-2], image_CHW.shape[-1]))
        return torch.stack(pixels), sizes

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Images":
        """Returns the images with these indices, in this order."""
        indices = np.asarray(indices, dtype=np.int64)
        pixels: Pixels
        if isinstance(self.pixels, EncodedImages):
            pixels = self.pixels.take(indices)
        elif isinstance(self.pixels, Tensor):
            pixels = self.pixels[torch.from_numpy(indices)]
        elif isinstance(self.pixels, list):
            pixels = [self.pixels[i] for i in indices.tolist()]
        else:  # not read now: 100,000 photos do not fit into memory
            pixels = LazyImages(self.pixels, indices)
        locations = None if self.locations is None else take_strings(self.locations, indices)
        groups = None if self.groups is None else take_strings(self.groups, indices)
        names, labels = take_strings(self.names, indices), self.labels[indices]
        return Images(pixels, names, labels, self.classes, locations, groups, self.task)

    def exclude(self, errors: Sequence[ImageError]) -> "Images":
        """Returns the images without those that these errors are about."""
        if not errors:
            return self
        unreadable = {error.name for error in errors}
        return self.subset([i for i, path in enumerate(self.paths) if path not in unreadable])


def count_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns the number of images of each class, (Y,), from the labels of `Images`."""
    if labels.dtype.kind == "f":  # numbers
        return np.full(classes, len(labels), dtype=np.int64)
    if labels.ndim == 2:
        counts: np.ndarray = labels.sum(axis=0, dtype=np.int64)
        return counts
    return np.bincount(labels, minlength=classes)


def load_into_memory(images: Images, max_bytes: int, tick: Callable[[], object] = lambda: None) -> Images:
    """Returns the images decoded in memory, or unchanged if that takes more than `max_bytes`.

    `tick` is called for each image. Raises `ImageError` for the first unreadable image.
    """
    if images.is_in_memory:
        return images
    array = torch.empty(0, dtype=torch.uint8)  # (n, C, H, W), used while all images have the same shape
    pixels_list: list[Tensor] = []  # used from the first image of another shape on
    n_bytes = 0
    for i in range(len(images)):
        pixels = images[i]
        n_bytes += pixels.nbytes
        is_probe = i == PROBE_IMAGES - 1
        if n_bytes > max_bytes or (is_probe and n_bytes / PROBE_IMAGES * len(images) > 2 * max_bytes):
            return images
        if i == 0 and n_bytes * len(images) <= max_bytes:  # allocated now: stacking a list would need twice the memory
            array = torch.empty(len(images), *pixels.shape, dtype=pixels.dtype)
        if not pixels_list and pixels.shape == array.shape[1:]:
            array[i] = pixels
        else:
            pixels_list = pixels_list or list(array[:i])
            pixels_list.append(pixels)
        tick()
    return replace(images, pixels=pixels_list or array)
