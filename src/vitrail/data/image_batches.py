"""Several images in memory or in files -> batches of pixels, read one batch at a time."""

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from vitrail.console import progress_bar
from vitrail.data.decode import ImageError, ImageUnreachable
from vitrail.errors import UsageError

OnError = Literal["raise", "skip"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class ImageBatch:
    """Some images: the pixels of those that can be read, and the reasons for the others, by position in the batch."""

    pixels_BCHW: Tensor  # uint8, of the model's size
    paths: list[str | None]  # one for each image; None for an image that is not a file
    errors: dict[int, str]

    @property
    def readable(self) -> list[int]:
        """The positions of the images that `pixels_BCHW` holds."""
        return [i for i in range(len(self.paths)) if i not in self.errors]


def path_of_input(image: object) -> str | None:
    """Returns the path of an image that is a file, None for one in memory."""
    return str(image) if isinstance(image, str | Path) else None


def read_batches(
    images: Iterable[Item],
    read: Callable[[Item, str], Tensor],
    *,
    batch_size: int,
    on_error: OnError = "raise",
    progress: str | None = None,
    path_of: Callable[[Item], str | None] = path_of_input,
) -> Iterator[ImageBatch]:
    """Yields the images in batches; `read` takes an image and its name for messages and returns its pixels (C, H, W).

    `path_of` returns the path of an image that has one.

    With `progress`, its description, a bar is shown if there is more than one batch. Raises `ImageError` for the first
    image that cannot be read, unless `on_error` is "skip", and always for one on a failing disk or network.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; it must be at least 1")
    if on_error not in ("raise", "skip"):
        raise UsageError(f"on_error is {on_error!r}; it must be 'raise' or 'skip'")
    total = len(images) if isinstance(images, Sized) else None
    numbered = enumerate(images)
    if progress is None or (total is not None and total <= batch_size):
        while batch := list(islice(numbered, batch_size)):
            yield read_batch(batch, read, on_error, path_of)
        return
    with progress_bar(progress, total) as bar:
        while batch := list(islice(numbered, batch_size)):
            yield read_batch(batch, read, on_error, path_of)
            bar.advance(len(batch))


def read_batch(
    numbered: list[tuple[int, Item]],
    read: Callable[[Item, str], Tensor],
    on_error: OnError,
    path_of: Callable[[Item], str | None],
) -> ImageBatch:
    """Reads images, each with its index."""
    pixels: list[Tensor] = []
    errors: dict[int, str] = {}
    for i, (index, image) in enumerate(numbered):
        try:
            pixels.append(read(image, name_image(index, path_of(image))))
        except ImageError as error:
            if on_error == "raise" or isinstance(error, ImageUnreachable):
                raise
            errors[i] = error.reason
    paths = [path_of(image) for _, image in numbered]
    return ImageBatch(torch.stack(pixels) if pixels else torch.empty(0, dtype=torch.uint8), paths, errors)


def name_image(index: int, path: str | None) -> str:
    """Returns the name of one of several images for messages."""
    return f"images[{index}]" if path is None else f"images[{index}] ({path})"
