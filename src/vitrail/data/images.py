"""A set of labelled images, in memory or in files, with one face."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vitrail.data.decode import ImageError
from vitrail.data.encoded import EncodedImages
from vitrail.data.preprocess import Preprocess
from vitrail.data.strings import take_strings

Pixels = Sequence[Tensor] | Tensor  # anything that gives a uint8 (C, H, W) for an index


@dataclass(frozen=True)
class LazyImages(Sequence[Tensor]):
    """Some images of a sequence that reads them when asked, each converted when asked."""

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
    """Images with a name and a label each; `labels` index `classes`. Indexing gives uint8 pixels (C, H, W)."""

    pixels: Pixels
    names: Sequence[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    locations: Sequence[str] | None = None  # where each lies, also once the pixels are in memory

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Tensor:
        return self.pixels[i]

    def read_size(self, i: int) -> tuple[int, int]:
        """Height and width of an image; one that is encoded is not decoded for them."""
        return self.pixels.read_size(i) if isinstance(self.pixels, EncodedImages) else tuple(self[i].shape[-2:])  # type: ignore[return-value]

    def load_batch(self, preprocess: Preprocess, indices: Sequence[int] | np.ndarray) -> Tensor:
        """These images as uint8 (B, C, H, W) of the model's size; raises `ImageError` naming one that cannot be."""
        pixels = []
        for i in indices:
            try:
                pixels.append(preprocess.fit_image(self[int(i)]))
            except ValueError as error:
                raise ImageError(self.paths[int(i)], str(error)) from None
        return torch.stack(pixels)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Images":
        """The images at these places, in this order."""
        places = np.asarray(indices, dtype=np.int64)
        pixels: Pixels
        if isinstance(self.pixels, EncodedImages):
            pixels = self.pixels.take(places)
        elif isinstance(self.pixels, Tensor):
            pixels = self.pixels[torch.from_numpy(places)]
        elif isinstance(self.pixels, list):
            pixels = [self.pixels[i] for i in places.tolist()]
        else:  # read when asked: 100,000 photos do not fit into memory
            pixels = LazyImages(self.pixels, places)
        files = None if self.locations is None else take_strings(self.locations, places)
        return Images(pixels, take_strings(self.names, places), self.labels[places], self.classes, files)

    def exclude(self, unreadable: Sequence[ImageError]) -> "Images":
        """The images but for those that cannot be read."""
        if not unreadable:
            return self
        gone = {error.name for error in unreadable}
        return self.subset([i for i, path in enumerate(self.paths) if path not in gone])

    @property
    def paths(self) -> Sequence[str]:
        """Where each image lies; its name where it does not come from a file of its own."""
        return self.names if self.locations is None else self.locations

    @property
    def is_in_memory(self) -> bool:
        """Whether reading an image costs nothing."""
        return isinstance(self.pixels, Tensor | list)

    def count_by_class(self) -> dict[str, int]:
        """Images per class."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))


def load_into_memory(images: Images, max_bytes: int, tick: Callable[[], object] = lambda: None) -> Images:
    """`images` decoded once and kept as uint8, or unchanged where that takes more than `budget` bytes.

    `tick` is called once an image. Raises `ImageError` at the first file that cannot be read.
    """
    if images.is_in_memory:
        return images
    whole = torch.empty(0, dtype=torch.uint8)  # (n, C, H, W), as long as all are of one shape
    kept: list[Tensor] = []
    size = 0
    for i in range(len(images)):
        pixels = images[i]
        size += pixels.numel()
        if size > max_bytes or (i == 63 and size / 64 * len(images) > 2 * max_bytes):
            return images
        if i == 0 and size * len(images) <= max_bytes:
            whole = torch.empty(len(images), *pixels.shape, dtype=torch.uint8)  # a stacked list needs it twice
        if not kept and pixels.shape == whole.shape[1:]:
            whole[i] = pixels
        else:
            kept = kept or list(whole[:i])
            kept.append(pixels)
        tick()
    return replace(images, pixels=kept or whole)
