"""Files whose values are kept: NumPy arrays, TIFF, PNG of 16 bits, DICOM -> arrays (C, h, w).

`find_bands` reads the header, `read_bands` all of a file. Nothing is allocated before the header has been compared with
the limits, and arrays of Python objects, which would run code, are refused.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, TiffImagePlugin
from torch import Tensor

from vitrail.data.bands import (
    IMAGE_CHANNELS,
    MAX_CHANNELS,
    BandHeader,
    Bands,
    BandsError,
    ValueType,
    arrange,
    to_channels_first,
    type_of_array,
)
from vitrail.data.dicom import find_dicom, read_dicom
from vitrail.data.formats import START_BYTES, TIFF_MAGICS, is_dicom
from vitrail.installation import install_hint

MAX_PIXELS = 100_000_000  # height times width; checked against the header before anything is decoded
MAX_VALUES = 4 * MAX_PIXELS  # over all channels
MAX_EXACT = 1 << 24  # the largest integer up to which float32 has every integer
NOT_PLAIN = "not those of a gray or color image of 8 bits"
NPY_MAGIC, PNG_MAGIC = b"\x93NUMPY", b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by color type; 4 and 6 have transparency
TIFF_ORIENTATION, ALPHA = 274, (1, 2)
BLACK_IS_ZERO, WHITE_IS_ZERO, RGB = 1, 0, 2
SAMPLE_FORMATS: dict[tuple[int, int], ValueType] = {
    (1, 8): "uint8", (1, 16): "uint16", (1, 32): "uint32", (2, 16): "int16", (2, 32): "int32",
    (3, 16): "float32", (3, 32): "float32", (3, 64): "float32",
}  # fmt: skip
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # of (C, h, w), by EXIF orientation
    2: lambda x: x[:, :, ::-1],
    3: lambda x: x[:, ::-1, ::-1],
    4: lambda x: x[:, ::-1],
    5: lambda x: x.swapaxes(1, 2),
    6: lambda x: np.rot90(x, -1, (1, 2)),
    7: lambda x: x[:, ::-1, ::-1].swapaxes(1, 2),
    8: lambda x: np.rot90(x, 1, (1, 2)),
}

File = str | Path | BinaryIO


def find_bands(file: File) -> BandHeader | None:
    """Returns the header of a file that has bands; None for any other file, such as a JPEG.

    Raises `BandsError` for a file of such a format that cannot be read, and `OSError`.
    """
    try:
        with open_binary(file) as stream:
            start = stream.read(START_BYTES)
            stream.seek(0)
            find = next((find for matches, find, _ in FORMATS.values() if matches(start)), None)
            return find(stream) if find else None
    except (BandsError, OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes the libraries raise many types, and a name may have a null byte
        raise BandsError(f"damaged or truncated ({error})") from None


def is_bands(header: BandHeader) -> bool:
    """Returns whether the values of a file can be kept: not if the file has transparency."""
    return not header.is_plain or (header.bands.count in IMAGE_CHANNELS and not header.bands.is_plain)


def read_values(file: File, wanted: Bands | None) -> tuple[Tensor, BandHeader] | None:
    """Returns the values of a file that has the bands `wanted`, (C, h, w), and its header.

    Without `wanted`, an array of an 8-bit gray or color image is read. Returns None for a file of another format, such
    as a JPEG; raises `BandsError` for other bands, and for a file that cannot be read.
    """
    header = find_bands(file)
    if header is None:
        return None
    if wanted is None and not header.bands.is_plain:
        raise BandsError(f"it has {header.bands}, and {NOT_PLAIN}")
    if wanted is not None and header.bands != wanted:
        raise BandsError(f"it has {header.bands}, and not {wanted}")
    array_CHW, orientation = read_bands(file, header)
    return to_tensor(array_CHW), replace(header, orientation=orientation)


def read_bands(file: File, header: BandHeader) -> tuple[np.ndarray, int]:
    """Returns the values of a file, turned upright, (C, h, w), and its EXIF orientation; raises `BandsError`."""
    check_limits(header)
    with open_binary(file) as stream:
        try:
            array, orientation = FORMATS[header.format][2](stream, header)
        except (BandsError, MemoryError):
            raise
        except Exception as error:
            raise BandsError(f"damaged or truncated ({error})") from None
    turn = TURNS.get(orientation)
    return (turn(array) if turn else array), orientation


def to_tensor(array_CHW: np.ndarray) -> Tensor:
    """Returns the values as uint8, or as float32 with the values of the array; raises `BandsError`.

    Refused are values that are not finite, and integers that float32 does not hold exactly.
    """
    if not array_CHW.size:
        raise BandsError("it has no pixels")
    if array_CHW.dtype == np.uint8:
        return torch.from_numpy(np.array(array_CHW, order="C"))
    if array_CHW.dtype.kind in "ui" and array_CHW.dtype.itemsize > 2:
        low, high = int(array_CHW.min()), int(array_CHW.max())
        if max(-low, high) > MAX_EXACT:
            raise BandsError(f"its values go from {low} to {high}, which float32 does not hold exactly; save floats")
    with np.errstate(over="ignore"):
        values = np.array(array_CHW, dtype=np.float32, order="C")
    if not np.isfinite(values).all():
        n = int(values.size - np.isfinite(values).sum())
        raise BandsError(f"{n:,} of its {values.size:,} values are not finite numbers (NaN); replace them")
    return torch.from_numpy(values)


def check_limits(header: BandHeader) -> None:
    """Raises `BandsError` for an image that is too large to decode."""
    pixels, count = header.height * header.width, header.bands.count
    if pixels > MAX_PIXELS:
        raise BandsError(f"{header.width}x{header.height} pixels are above the limit of {MAX_PIXELS:,}")
    if pixels * count > MAX_VALUES:
        size = f"{header.width}x{header.height} pixels of {count} channels"
        raise BandsError(f"{size} are above the limit of {MAX_VALUES:,} values")


@contextmanager
def open_binary(file: File) -> Iterator[BinaryIO]:
    """Opens a path; a file object is used from its start and stays open."""
    if isinstance(file, str | Path):
        with open(file, "rb") as stream:
            yield stream
    else:
        file.seek(0)
        yield file
        file.seek(0)


def count_bytes(stream: BinaryIO) -> int:
    """Returns the number of bytes of an open file."""
    position = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(position)
    return size


def read_npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns shape, whether the order is Fortran's, and type; raises `BandsError` for Python objects.

    The header is a literal that NumPy parses; it never runs code.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    if dtype.hasobject:
        raise BandsError("it holds Python objects, which are never loaded: they could run code")
    return shape, is_fortran, dtype


def find_npy(stream: BinaryIO) -> BandHeader:
    shape, _, dtype = read_npy_header(stream)
    (channels, height, width), _ = to_channels_first(shape)
    if not 1 <= channels <= MAX_CHANNELS or not height or not width:
        raise BandsError(f"its shape is {shape}; an image has 1 to {MAX_CHANNELS} channels")
    bands = Bands(channels, type_of_array(dtype))
    return BandHeader("NPY", bands, height, width, is_plain=bands.is_plain)


def read_npy(stream: BinaryIO, header: BandHeader) -> tuple[np.ndarray, int]:
    shape, is_fortran, dtype = read_npy_header(stream)
    needed, there = math.prod(shape) * dtype.itemsize, count_bytes(stream) - stream.tell()
    if there < needed:
        raise BandsError(f"it is truncated: its shape needs {needed:,} bytes, and it has {there:,}")
    array = np.frombuffer(stream.read(needed), dtype).reshape(shape, order="F" if is_fortran else "C")
    return arrange(array.astype(dtype.newbyteorder("="), copy=False)), header.orientation


def write_npy(array_CHW: np.ndarray) -> bytes:
    """Returns an NPY file that is read as this image; raises `BandsError` for a shape that would mean another one."""
    channels, height, width = array_CHW.shape
    if channels == 1:
        array = array_CHW[0]
    elif width > channels:
        array = array_CHW
    elif height >= channels:
        array = np.moveaxis(array_CHW, 0, 2)
    else:
        raise BandsError(f"it has more channels ({channels}) than pixels in a row or column ({width}x{height})")
    file = BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def find_png(stream: BinaryIO) -> BandHeader | None:
    head = stream.read(26)
    depth, color_type = head[24], head[25]
    if depth != 16 or color_type not in PNG_CHANNELS:
        return None
    width, height = (int.from_bytes(head[i : i + 4], "big") for i in (16, 20))
    return BandHeader("PNG", Bands(PNG_CHANNELS[color_type], "uint16"), height, width, is_plain=True)


def read_png(stream: BinaryIO, header: BandHeader) -> tuple[np.ndarray, int]:
    with Image.open(stream, formats=("PNG",)) as image:
        orientation = image.getexif().get(TIFF_ORIENTATION, 1)  # may decode the image, so `find_png` does not do it
        if header.bands.count == 1:
            return np.asarray(image).astype(np.uint16)[None], orientation
    from torchvision.io import ImageReadMode, decode_png

    stream.seek(0)
    content = torch.frombuffer(bytearray(stream.read()), dtype=torch.uint8)
    array: np.ndarray = decode_png(content, mode=ImageReadMode.UNCHANGED).numpy()  # (C, h, w), uint16
    return array, orientation


def read_tiff_tags(stream: BinaryIO) -> Iterator[dict[int, Any]]:
    """Yields the tags of each page of a TIFF."""
    start = stream.read(8)
    directory = TiffImagePlugin.ImageFileDirectory_v2(
        start + (stream.read(8) if start[2:3] == b"+" or start[3:4] == b"+" else b"")
    )
    seen: set[int] = set()
    while directory.next and directory.next not in seen and len(seen) <= MAX_CHANNELS:
        seen.add(directory.next)
        stream.seek(directory.next)
        directory.load(stream)
        yield dict(directory)


def describe_page(tags: dict[int, Any]) -> tuple[int, int, int, ValueType | None]:
    """Returns height, width, samples per pixel and their type; None for a type that only Pillow reads."""
    bits, formats = (np.atleast_1d(tags.get(tag, 1)).tolist() for tag in (258, 339))
    value_type = SAMPLE_FORMATS.get((formats[0], bits[0])) if len({*bits}) == 1 and len({*formats}) == 1 else None
    if formats[0] == 1 and 8 < bits[0] < 16 and len({*bits}) == 1:
        value_type = "uint16"  # 12 bits
    return int(tags[257]), int(tags[256]), int(tags.get(277, 1)), value_type


def find_tiff(stream: BinaryIO) -> BandHeader | None:
    pages = list(read_tiff_tags(stream))
    if not pages:
        raise BandsError("damaged or truncated (it has no page)")
    first = pages[0]
    height, width, samples, value_type = describe_page(first)
    photometric, extra = first.get(262, BLACK_IS_ZERO), np.atleast_1d(first.get(338, 0)).tolist()
    if value_type is None or photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
        return None
    if value_type == "uint8" and extra[-1] in ALPHA and samples in (2, 4):  # gray or color with transparency
        return None
    if len(pages) > 1:
        if samples > 1 or any(describe_page(tags) != describe_page(first) for tags in pages):
            return None  # a document, or an image with its thumbnail: the first page is the image
        samples = len(pages)
    if samples > MAX_CHANNELS:
        raise BandsError(f"it has more than {MAX_CHANNELS} channels")
    bands = Bands(samples, value_type)
    is_plain = samples in (1, 3) and len(pages) == 1
    if is_plain and value_type == "uint8":
        return None
    return BandHeader("TIFF", bands, height, width, is_plain, len(pages), int(first.get(TIFF_ORIENTATION, 1)))


def read_tiff(stream: BinaryIO, header: BandHeader) -> tuple[np.ndarray, int]:
    try:
        import tifffile
    except ImportError:
        return read_tiff_with_pillow(stream, header), header.orientation
    try:
        with tifffile.TiffFile(stream) as tiff:
            pages: Any = tiff.pages[: header.pages]
            arrays = [page.asarray() for page in pages]
            is_planar = pages[0].planarconfig == 2
    except ValueError as error:
        if "imagecodecs" in str(error):
            raise BandsError(f"its compression needs imagecodecs ({error}): pip install imagecodecs") from None
        raise
    if header.pages > 1:
        return np.stack(arrays), header.orientation
    array: np.ndarray = arrays[0]
    if array.ndim == 2:
        array = array[None]
    elif not is_planar:
        array = np.moveaxis(array, 2, 0)
    return array, header.orientation


def read_tiff_with_pillow(stream: BinaryIO, header: BandHeader) -> np.ndarray:
    """Reads pages of one channel, which need no other library."""
    if header.bands.count > header.pages:
        raise BandsError(f"a TIFF of {header.bands} is read with tifffile: {install_hint('tiff')}")
    with Image.open(stream, formats=("TIFF",)) as image:
        arrays = []
        for page in range(header.pages):
            image.seek(page)
            arrays.append(np.array(image))
    types = {"uint16": np.uint16, "int16": np.int16, "uint32": np.uint32}  # which Pillow may hold as int32
    return np.stack(arrays).astype(types.get(header.bands.values, arrays[0].dtype))


Matches = Callable[[bytes], bool]
Find = Callable[[BinaryIO], BandHeader | None]
Read = Callable[[BinaryIO, BandHeader], tuple[np.ndarray, int]]
FORMATS: dict[str, tuple[Matches, Find, Read]] = {
    "NPY": (lambda start: start.startswith(NPY_MAGIC), find_npy, read_npy),
    "PNG": (lambda start: start.startswith(PNG_MAGIC), find_png, read_png),
    "TIFF": (lambda start: start.startswith(TIFF_MAGICS), find_tiff, read_tiff),
    "DICOM": (is_dicom, find_dicom, read_dicom),
}  # by format: whether a file of these first bytes is one, reader of the header, reader of values and orientation
