"""Images with any number of channels, whose values are kept: `Bands` says how many channels, of which values.

Such an image is a tensor (C, H, W) with the values of its file: uint8 for 8 bits, else float32. All other images are
8-bit gray (1 channel) or color (3 channels), and `decode` converts each of them to what is asked for. An image of bands
is never converted: another number of channels, or values of another type, mean something else.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from vitrail.errors import UsageError

ValueType = Literal["uint8", "uint16", "int16", "uint32", "int32", "float32"]
VALUE_TYPES: tuple[ValueType, ...] = ("uint8", "uint16", "int16", "uint32", "int32", "float32")
IMAGE_CHANNELS = (1, 3)  # of images of 8 bits that are not bands: gray and color
MAX_CHANNELS = 4096
TYPE_OF_ARRAY: dict[str, ValueType] = {
    "u1": "uint8", "u2": "uint16", "u4": "uint32", "i2": "int16", "i4": "int32",
    "f2": "float32", "f4": "float32", "f8": "float32",
}  # fmt: skip


class BandsError(Exception):
    """Values that cannot be read as bands; the text is the reason."""


@dataclass(frozen=True)
class Bands:
    """A number of channels, and the type of the values in the file; float32 also stands for 16 and 64-bit floats."""

    count: int
    values: ValueType

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_CHANNELS or self.values not in VALUE_TYPES:
            raise UsageError(f"{self.count} channels of {self.values} are not possible", f"at most {MAX_CHANNELS}")

    def __str__(self) -> str:
        return f"{self.count} channel{'s' * (self.count > 1)} of {self.values}"

    @property
    def is_plain(self) -> bool:
        """Whether these are the channels of an 8-bit gray or color image."""
        return self.values == "uint8" and self.count in IMAGE_CHANNELS


@dataclass(frozen=True)
class BandHeader:
    """What a file says about its image before it is decoded."""

    format: str  # NPY, TIFF, PNG, DICOM
    bands: Bands
    height: int
    width: int
    is_plain: bool = False  # whether the file can also be read as an 8-bit gray or color image
    pages: int = 1
    orientation: int = 1  # of EXIF; that of a PNG may be behind its pixels, and is known when they are read


Channels: TypeAlias = int | Bands  # 1 (gray) or 3 (color) of 8 bits, or bands


def as_channels(bands: Bands) -> Channels:
    """Returns the bands, or their number if they are those of an 8-bit gray or color image."""
    return bands.count if bands.is_plain else bands


def count_of(channels: Channels) -> int:
    """Returns the number of channels."""
    return channels.count if isinstance(channels, Bands) else channels


def describe_channels(channels: Channels) -> str:
    """Returns a phrase such as "5 channels of uint16"."""
    return str(channels if isinstance(channels, Bands) else Bands(channels, "uint8"))


def type_of_array(dtype: np.dtype) -> ValueType:
    """Returns the type of values of an array; raises `BandsError` for one that float32 cannot hold."""
    kind = f"{dtype.kind}{dtype.itemsize}"
    if kind not in TYPE_OF_ARRAY:
        raise BandsError(f"its values are {dtype}; save {', '.join(VALUE_TYPES)} or float64")
    return TYPE_OF_ARRAY[kind]


def to_channels_first(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], bool]:
    """Returns (C, h, w) of an array of this shape, and whether its channels come last; raises `BandsError`.

    Arrays are (h, w), (h, w, C), or (C, h, w) if the first dimension is smaller than the last.
    """
    if len(shape) == 2:
        return (1, *shape), False
    if len(shape) != 3:
        raise BandsError(f"its shape is {shape}; an image is (h, w), (h, w, C) or (C, h, w)")
    is_last = shape[2] <= shape[0]
    return ((shape[2], shape[0], shape[1]) if is_last else shape), is_last


def arrange(array: np.ndarray) -> np.ndarray:
    """Returns an array of an image as (C, h, w); raises `BandsError`."""
    shape, is_last = to_channels_first(array.shape)
    return np.moveaxis(array, 2, 0) if is_last else array.reshape(shape)
