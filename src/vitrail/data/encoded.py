"""Images stored as encoded bytes (JPEG, PNG, ...), decoded on access.

Splitting, ordering and loading use only this interface, so it does not matter whether the bytes are in files, in tar
shards or in the rows of a table.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from torch import Tensor

from vitrail.data.band_files import find_bands, is_bands
from vitrail.data.bands import BandsError, Channels
from vitrail.data.decode import ImageError, decode, read_size

SHA256_BYTES = 32
PROBED_IMAGES = 16  # whose headers tell how many channels the images have


class EncodedImages(Sequence[Tensor], ABC):
    """Images as encoded bytes; indexing decodes one into (C, H, W). Implementations are frozen dataclasses."""

    channels: Channels

    @abstractmethod
    def location(self, i: int) -> str:
        """Returns where image `i` is, as shown to users: a path, or SHARD:NAME."""

    @abstractmethod
    def read_bytes(self, i: int) -> bytes:
        """Returns the encoded image; raises `ImageError`."""

    @abstractmethod
    def byte_sizes(self) -> np.ndarray:
        """Returns the number of bytes of each image, int64 (n,); -1 for a missing one."""

    @abstractmethod
    def cache_key(self, i: int) -> tuple[str, int, int]:
        """Returns (location, size, modification time), which changes with the image; raises `ImageError`."""

    @abstractmethod
    def take(self, indices: np.ndarray) -> Self:
        """Returns the images with these indices, in this order."""

    def decoder_input(self, i: int) -> Path | BinaryIO:
        """Returns what `decode` reads image `i` from; raises `ImageError`."""
        return BytesIO(self.read_bytes(i))

    def sha256(self, indices: np.ndarray) -> np.ndarray:
        """Returns the SHA-256 of the bytes of these images, uint8 (k, 32); of no bytes for an unreadable image."""
        digests = np.empty((len(indices), SHA256_BYTES), dtype=np.uint8)
        for digest, i in zip(digests, indices.tolist(), strict=True):
            try:
                content = self.read_bytes(i)
            except ImageError:
                content = b""
            digest[:] = np.frombuffer(hashlib.sha256(content).digest(), dtype=np.uint8)
        return digests

    def with_channels(self, channels: Channels) -> Self:
        """Returns the same images, decoded as gray (1) or color (3), or read as bands."""
        return replace(self, channels=channels)  # type: ignore[type-var]

    def find_channels(self) -> Channels:
        """Returns the bands that most of some images have, or 1 or 3 if they are gray or color images of 8 bits.

        Images of 16 bits with one or three channels are bands if all of these are: then no value is reduced to 8 bits.
        """
        headers = []
        for i in self.probed():
            try:
                headers.append(find_bands(self.decoder_input(i)))
            except (ImageError, BandsError, OSError):
                continue
        found = Counter(header.bands if header and is_bands(header) else None for header in headers)
        bands, n = found.most_common(1)[0] if found else (None, 0)
        is_needed = any(header and not header.is_plain and header.bands == bands for header in headers)
        return bands if bands and (is_needed or n == len(headers)) else self.channels

    def probed(self) -> list[int]:
        """Returns the indices of a few images, evenly spaced, whose headers tell the channels."""
        indices: list[int] = np.unique(
            np.linspace(0, len(self) - 1, min(len(self), PROBED_IMAGES)).astype(int)
        ).tolist()
        return indices

    def locations(self) -> Sequence[str]:
        return LazyLocations(self)

    def read_size(self, i: int) -> tuple[int, int]:
        """Returns height and width from the image's header."""
        return read_size(self.decoder_input(i), self.location(i))

    def __getitem__(self, i: int) -> Tensor:  # type: ignore[override]
        return decode(self.decoder_input(i), self.channels, self.location(i))


@dataclass(frozen=True)
class LazyLocations(Sequence[str]):
    """The locations of images, formatted on access."""

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
    """Images in files of their own."""

    paths: list[Path]
    channels: Channels = 3

    def __len__(self) -> int:
        return len(self.paths)

    def location(self, i: int) -> str:
        return str(self.paths[i])

    def locations(self) -> list[str]:
        return [str(path) for path in self.paths]

    def decoder_input(self, i: int) -> Path:
        """Returns the path, so that a large file that is not an image is not read as a whole."""
        return self.paths[i]

    def read_bytes(self, i: int) -> bytes:
        try:
            return self.paths[i].read_bytes()
        except (OSError, ValueError):
            raise explain_unreadable(self.paths[i]) from None

    def byte_sizes(self) -> np.ndarray:
        sizes = (path.stat().st_size if os.path.isfile(path) else -1 for path in self.paths)
        return np.fromiter(sizes, dtype=np.int64, count=len(self.paths))

    def cache_key(self, i: int) -> tuple[str, int, int]:
        """Returns the real path, the size and the modification time in nanoseconds."""
        try:
            status = os.stat(self.paths[i])
            return os.path.realpath(self.paths[i]), status.st_size, status.st_mtime_ns
        except (OSError, ValueError):  # a missing file or an impossible name
            raise explain_unreadable(self.paths[i]) from None

    def take(self, indices: np.ndarray) -> "ImageFiles":
        return replace(self, paths=[self.paths[i] for i in indices.tolist()])


def explain_unreadable(path: Path) -> ImageError:
    """Returns the error with the reason why a file cannot be read, which the decoder finds."""
    try:
        decode(path)
    except ImageError as error:
        return error
    return ImageError(str(path), "it changed while it was read")
