"""Images of several files each, such as one per band: the channels of the files, one after the other.

`read_stack` returns such an image as the NPY file that it could have been, so that everything else reads it as that.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np

from vitrail.data.band_files import MAX_VALUES, find_bands, is_bands, read_bands, to_tensor, write_npy
from vitrail.data.bands import Bands, BandsError, Channels, ValueType, type_of_array
from vitrail.data.decode import GRAY_16_BIT, ImageError, decode_with_header, read_size, translate_errors
from vitrail.data.encoded import SHA256_BYTES, EncodedImages, ImageFiles

NOT_KEPT = "its values of more than 8 bits would be reduced; save it as TIFF, .npy, or PNG without transparency"


@dataclass(frozen=True)
class ImageStacks(EncodedImages):
    """Images of several files each. The first file names the image."""

    stacks: list[tuple[Path, ...]]
    channels: Channels = 3

    def __len__(self) -> int:
        return len(self.stacks)

    def location(self, i: int) -> str:
        return str(self.stacks[i][0])

    def decoder_input(self, i: int) -> BytesIO:
        return read_stack(self.stacks[i], self.channels)

    def read_bytes(self, i: int) -> bytes:
        """Returns the image as an NPY file."""
        return self.decoder_input(i).getvalue()

    def byte_sizes(self) -> np.ndarray:
        """Returns the number of bytes of the files of each image; -1 if one of them is missing."""
        rows = (ImageFiles(list(files)).byte_sizes() for files in self.stacks)
        totals = (-1 if (row < 0).any() else row.sum() for row in rows)
        return np.fromiter(totals, dtype=np.int64, count=len(self))

    def sha256(self, indices: np.ndarray) -> np.ndarray:
        """Returns the digest of the digests of the files."""
        digests = np.empty((len(indices), SHA256_BYTES), dtype=np.uint8)
        for digest, i in zip(digests, indices.tolist(), strict=True):
            files = ImageFiles(list(self.stacks[i]))
            parts = files.sha256(np.arange(len(files))).tobytes()
            digest[:] = np.frombuffer(hashlib.sha256(parts).digest(), dtype=np.uint8)
        return digests

    def cache_key(self, i: int) -> tuple[str, int, int]:
        """Returns the real paths, the sum of the sizes, and a number that changes with each time of change."""
        files = ImageFiles(list(self.stacks[i]))
        keys, sizes, times = zip(*(files.cache_key(k) for k in range(len(files))), strict=True)
        stamp = hashlib.sha256(" ".join(map(str, [*sizes, *times])).encode()).digest()
        return "\n".join(keys), sum(sizes), int.from_bytes(stamp[:7], "big")

    def read_size(self, i: int) -> tuple[int, int]:
        """Returns height and width from the header of the first file."""
        return read_size(self.stacks[i][0])

    def take(self, indices: np.ndarray) -> "ImageStacks":
        return replace(self, stacks=[self.stacks[i] for i in indices.tolist()])


def read_stack(files: Sequence[str | Path], channels: Channels) -> BytesIO:
    """Returns the image of several files as an NPY file: their channels, in the order of the files.

    Values are kept; those of different types become floats. Raises `ImageError`, with the name of the first file, for a
    file that cannot be read, for files of different sizes, and for types that differ where `channels` says one.
    """
    name = str(files[0])
    arrays: list[np.ndarray] = []
    for file in files:
        arrays.append(read_part(file, name))
        (_, h, w), (_, height, width) = arrays[-1].shape, arrays[0].shape
        if (h, w) != (height, width):
            raise ImageError(name, f"it has {width}x{height} pixels, and {file}, of the same image, has {w}x{h}")
        if sum(array.size for array in arrays) > MAX_VALUES:
            raise ImageError(name, f"its files have more than {MAX_VALUES:,} values")
    with translate_errors(BytesIO(), name):
        types: list[ValueType] = [type_of_array(array.dtype) for array in arrays]
        if len(set(types)) > 1:
            if isinstance(channels, Bands) and channels.values != "float32":
                raise BandsError(f"{describe_types(files, types)}, and not all {channels.values}")
            arrays = [to_tensor(array).float().numpy() for array in arrays]
        return BytesIO(write_npy(np.concatenate(arrays)))


def describe_types(files: Sequence[str | Path], types: Sequence[ValueType]) -> str:
    """Returns a phrase on two files whose values have different types."""
    other = next(i for i, each in enumerate(types) if each != types[0])
    return f"it has {types[0]}, and {files[other]}, of the same image, has {types[other]}"


def read_part(file: str | Path, name: str) -> np.ndarray:
    """Returns the values of one file of an image, (C, h, w); raises `ImageError`, with the name of the image."""
    try:
        with translate_errors(file):
            header = find_bands(file)
            if header and (header.format == "NPY" or is_bands(header)):
                return read_bands(file, header)[0]
            if header and header.bands.values != "uint8":
                raise BandsError(NOT_KEPT)
        pixels, image_header = decode_with_header(file, 3)
        if image_header.color_type == GRAY_16_BIT:
            raise ImageError(str(file), NOT_KEPT)
    except ImageError as error:
        reason = error.reason if str(file) == name else f"{file}, of the same image: {error.reason}"
        raise type(error)(name, reason) from None
    array: np.ndarray = pixels.numpy()
    return array[:1] if image_header.color_type == "gray" else array
