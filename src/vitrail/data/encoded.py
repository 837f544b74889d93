"""Images that lie somewhere as files do, encoded, and are decoded when asked for.

Where that is, nobody else needs to know: a place in a folder, in a tar shard, in a table.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from torch import Tensor

from vitrail.data.decode import ImageError, decode, read_size

DIGEST = 32  # bytes of a SHA-256


class EncodedImages(Sequence[Tensor], ABC):
    """Images as bytes in a format of their own; indexing decodes one into uint8 (C, H, W)."""

    channels: int

    @abstractmethod
    def location(self, i: int) -> str:
        """Where an image lies, in words that its owner would use."""

    @abstractmethod
    def read_bytes(self, i: int) -> bytes:
        """The bytes of an image; raises `ImageError` naming it."""

    @abstractmethod
    def byte_sizes(self) -> np.ndarray:
        """How many bytes each image has, int64 (n,); -1 where it is not there."""

    @abstractmethod
    def cache_key(self, i: int) -> tuple[str, int, int]:
        """(place, size, time of change) by which an image is known to be what it was; raises `ImageError`."""

    @abstractmethod
    def take(self, places: np.ndarray) -> Self:
        """The images at these places, in this order."""

    def decoder_input(self, i: int) -> Path | BinaryIO:
        """What `decode` reads an image from; raises `ImageError`."""
        return BytesIO(self.read_bytes(i))

    def sha256(self, places: np.ndarray) -> np.ndarray:
        """SHA-256 of the bytes of these images, uint8 (k, 32); of nothing where one cannot be read."""
        found = np.empty((len(places), DIGEST), dtype=np.uint8)
        for row, i in zip(found, places.tolist(), strict=True):
            try:
                content = self.read_bytes(i)
            except ImageError:
                content = b""
            row[:] = np.frombuffer(hashlib.sha256(content).digest(), dtype=np.uint8)
        return found

    def with_channels(self, channels: int) -> Self:
        """The same images, decoded into this many channels."""
        return replace(self, channels=channels)  # type: ignore[type-var]  # those that there are, are dataclasses

    def locations(self) -> Sequence[str]:
        """Where each image lies."""
        return Locations(self)

    def read_size(self, i: int) -> tuple[int, int]:
        """Height and width of an image as its header says."""
        return read_size(self.decoder_input(i), self.location(i))

    def __getitem__(self, i: int) -> Tensor:  # type: ignore[override]
        return decode(self.decoder_input(i), self.channels, self.location(i))


@dataclass(frozen=True)
class Locations(Sequence[str]):
    """The places of images, put into words when asked."""

    images: EncodedImages

    def __getitem__(self, i: int | slice) -> str | list[str]:  # type: ignore[override]
        if isinstance(i, slice):
            return [self.images.location(k) for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return self.images.location(i)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ImageFiles(EncodedImages):
    """Images that are files of their own."""

    paths: list[Path]
    channels: int = 3

    def __len__(self) -> int:
        return len(self.paths)

    def location(self, i: int) -> str:
        """The path."""
        return str(self.paths[i])

    def locations(self) -> list[str]:
        """The paths."""
        return [str(path) for path in self.paths]

    def decoder_input(self, i: int) -> Path:
        """The file itself: what is not an image is not read to its end."""
        return self.paths[i]

    def read_bytes(self, i: int) -> bytes:
        """The file's bytes."""
        try:
            return self.paths[i].read_bytes()
        except (OSError, ValueError):
            raise explain_unreadable(self.paths[i]) from None

    def byte_sizes(self) -> np.ndarray:
        """As the disk says."""
        found = (path.stat().st_size if os.path.isfile(path) else -1 for path in self.paths)
        return np.fromiter(found, dtype=np.int64, count=len(self.paths))

    def cache_key(self, i: int) -> tuple[str, int, int]:
        """The real path with its size and time in nanoseconds."""
        try:
            status = os.stat(self.paths[i])
            return os.path.realpath(self.paths[i]), status.st_size, status.st_mtime_ns
        except (OSError, ValueError):  # no such file, or no possible name of one: the decoder says which
            raise explain_unreadable(self.paths[i]) from None

    def take(self, places: np.ndarray) -> "ImageFiles":
        """The files at these places."""
        return replace(self, paths=[self.paths[i] for i in places.tolist()])


def explain_unreadable(path: Path) -> ImageError:
    """Why a file cannot be read."""
    try:
        decode(path)
    except ImageError as error:
        return error
    return ImageError(str(path), "it changed while it was read")
