"""Training images without labels: a folder of images, read beside the labeled ones."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrail.console import log, progress_bar
from vitrail.data.bands import Channels
from vitrail.data.decode import ImageError
from vitrail.data.encoded import ImageFiles
from vitrail.data.images import Images, Pixels, load_into_memory
from vitrail.data.walk import Omissions, count, log_left_out, no_images, walk_images
from vitrail.errors import UsageError

NO_CLASS = -1  # the label of an image without one


@dataclass(frozen=True)
class Chain(Sequence[Tensor]):
    """The images of two sequences, one after the other, each read on access."""

    first: Pixels
    second: Pixels

    def __getitem__(self, i: int) -> Tensor:  # type: ignore[override]
        n = len(self.first)
        return self.first[i] if i < n else self.second[i - n]

    def __len__(self) -> int:
        return len(self.first) + len(self.second)


def list_unlabeled(folder: str | Path, channels: Channels) -> Images:
    """Returns all images below a folder, whose labels are `NO_CLASS`; raises `UsageError` if there are none."""
    if not Path(folder).is_dir():
        raise UsageError(f"there is no folder {str(folder)!r} of unlabeled images", "give a folder of image files")
    omissions = Omissions()
    files = walk_images(folder, omissions)
    if not files:
        raise no_images(folder, omissions)
    log_left_out(omissions.describe(folder))
    pixels = ImageFiles(files, channels)
    names = [path.relative_to(folder).as_posix() for path in files]
    return Images(pixels, names, np.full(len(files), NO_CLASS, dtype=np.int64), (), locations=pixels.locations())


def drop_unreadable(images: Images) -> Images:
    """Decodes every image once; returns those that can be read, and warns of the others."""
    errors: list[ImageError] = []
    with progress_bar("reading unlabeled images", len(images)) as progress:
        for i in range(len(images)):
            try:
                images[i]
            except ImageError as error:
                errors.append(error)
            progress.advance()
    if errors:
        log(f"warning: {count(len(errors), 'unlabeled image')} cannot be read, first {errors[0].sentence}")
    return images.exclude(errors)


def read_unlabeled(
    folder: str | Path, channels: Channels, *, skip_unreadable: bool, max_bytes: int
) -> tuple[Images, str]:
    """Returns the readable images below a folder, in memory if that takes at most `max_bytes`, and their digest.

    Raises `ImageError` for an image that cannot be read, unless these are skipped.
    """
    images = list_unlabeled(folder, channels)
    if skip_unreadable:
        images = drop_unreadable(images)
    return load_into_memory(images, max_bytes), digest(images)


def digest(images: Images) -> str:
    """Returns a digest of the files of encoded images."""
    assert isinstance(images.pixels, ImageFiles)
    return hashlib.sha256(images.pixels.sha256(np.arange(len(images))).tobytes()).hexdigest()


def join_images(labeled: Images, unlabeled: Images) -> Images:
    """Returns the labeled images, then the unlabeled ones, with the classes of the first.

    The others have the label `NO_CLASS`, or rows of it; in place of numbers NaN.
    """
    first, second = labeled.pixels, unlabeled.pixels
    pixels: Pixels
    if isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape[1:] == second.shape[1:]:
        pixels = torch.cat([first, second])
    elif labeled.is_in_memory and unlabeled.is_in_memory:
        pixels = [*first, *second]
    else:
        pixels = Chain(first, second)
    labels = unlabeled.labels
    if labeled.labels.ndim == 2:  # several labels, or numbers
        missing = np.nan if labeled.labels.dtype.kind == "f" else NO_CLASS
        labels = np.full((len(unlabeled), labeled.labels.shape[1]), missing)
    return replace(
        labeled,
        pixels=pixels,
        names=[*labeled.names, *unlabeled.names],
        labels=np.concatenate([labeled.labels, labels]),
        locations=[*labeled.paths, *unlabeled.paths],
        groups=None,
    )
