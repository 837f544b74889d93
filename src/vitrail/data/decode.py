"""One decoder for every image file: from `check` and `train` to `predict` and `serve`."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from vitrail.console import hide_warnings
from vitrail.data.band_files import MAX_PIXELS, NPY_MAGIC, find_bands, read_values
from vitrail.data.bands import BandHeader, Bands, BandsError, Channels
from vitrail.data.formats import (
    ARRAY_EXTENSION,
    DICOM_EXTENSIONS,
    EXTENSIONS,
    START_BYTES,
    TIFF_MAGICS,
    is_dicom,
    readable_formats,
)
from vitrail.data.pixel_range import (
    UnclearRange,
    check_brightness,
    has_16_bit_colors,
    has_more_than_8_bits,
    scale_to_8_bits,
)
from vitrail.errors import VitrailError
from vitrail.installation import install_hint

EXIF_ORIENTATION = 0x0112
GRAY_16_BIT = "16-bit gray"
COLOR_TYPES = {
    **dict.fromkeys(("1", "L", "LA"), "gray"),
    **dict.fromkeys(("RGB", "RGBA"), "color"),
    **dict.fromkeys(("P", "PA"), "palette"),
    **dict.fromkeys(("I", "F", "I;16", "I;16B", "I;16L", "I;16N"), GRAY_16_BIT),
}  # by Pillow's mode
TRANSIENT_ERRNOS = frozenset((errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
BACKGROUND = (255, 255, 255)  # behind transparent pixels
CONVERT_HINT = "convert it to JPEG or PNG"
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
MAGIC = (  # offset, bytes, name of a format that is not read
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "SVG"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"SIMPLE", "FITS"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"qoif", "QOI"),
)


class ImageError(VitrailError):
    """An image that cannot be read; the message names it and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}", "replace the file or take it out of the data")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        """Lets pickle carry the error out of a worker process."""
        return type(self), (self.name, self.reason)


class ImageUnreachable(ImageError):
    """An image that cannot be read now because of its disk, network or the machine; the image may be valid."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.hint = "try again later"


@dataclass(frozen=True)
class ImageHeader:
    """Properties of a file that are lost in the decoded 8-bit pixels."""

    format: str  # JPEG, PNG, ...
    color_type: str  # gray, color, 16-bit gray, palette, or Pillow's mode, such as CMYK
    is_transparent: bool
    is_rotated: bool  # whether EXIF asks for a rotation or flip
    is_animated: bool


def decode(file: str | Path | BinaryIO, channels: Channels = 3, name: str | None = None) -> Tensor:
    """Decodes an image file into uint8 (C, H, W), with C = 1 (gray) or 3 (RGB), or into the values of its bands.

    Of gray and RGB, the EXIF orientation is applied, more than 8 bits are scaled as `pixel_range` says, transparent
    pixels are put over white, and of an animation the first frame is used. A color profile (ICC) is not applied. Bands
    are uint8 or float32, and never converted. Raises `ImageError`, which has the file's `name`.
    """
    return decode_with_header(file, channels, name)[0]


def decode_with_header(
    file: str | Path | BinaryIO, channels: Channels = 3, name: str | None = None
) -> tuple[Tensor, ImageHeader]:
    """Returns what `decode` returns, and the header."""
    if isinstance(channels, Bands) or has_only_values(file):
        return decode_values(file, channels, name)
    with open_image(file, name) as image:
        was_16_bit = has_16_bit_colors(image)  # known before loading only, and `getexif` may load the image
        header = ImageHeader(
            format=str(image.format),
            color_type=COLOR_TYPES.get(image.mode, image.mode),
            is_transparent=image.has_transparency_data,
            is_rotated=image.getexif().get(EXIF_ORIENTATION, 1) in range(2, 9),
            is_animated=bool(getattr(image, "is_animated", False)),
        )
        if image.mode == "LAB":  # Pillow cannot convert it to RGB without a profile
            raise ImageError(display_name(file, name), "its colors are in LAB; save it as RGB")
        try:
            upright = ImageOps.exif_transpose(load_8_bit(image, was_16_bit))
        except UnclearRange as error:
            raise ImageError(display_name(file, name), str(error)) from None
        return to_gray_or_color(upright, channels), header


def to_gray_or_color(image: Image.Image, channels: int) -> Tensor:
    """Returns an image of 8 bits as uint8 (C, H, W)."""
    array = np.array(remove_transparency(image).convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).contiguous()


def decode_values(file: str | Path | BinaryIO, channels: Channels, name: str | None) -> tuple[Tensor, ImageHeader]:
    """Returns the values of bands, (C, H, W), or an 8-bit array as gray or RGB; raises `ImageError` for others."""
    bands = channels if isinstance(channels, Bands) else None
    with translate_errors(file, name):
        found = read_values(file, bands)
    if found is None:
        with open_image(file, name) as image:
            plain = Bands(1 if COLOR_TYPES.get(image.mode) == "gray" else 3, "uint8")
        raise ImageError(display_name(file, name), f"it has {plain}, and not {bands or 'those of an array'}")
    pixels, header = found
    is_rotated = header.orientation in range(2, 9)
    if not isinstance(channels, Bands):
        array_HWC = pixels.permute(1, 2, 0).contiguous().numpy()
        image = Image.fromarray(array_HWC[:, :, 0] if len(pixels) == 1 else array_HWC)
        pixels = to_gray_or_color(image, channels)
    return pixels, ImageHeader(header.format, str(header.bands), False, is_rotated, False)


def has_only_values(file: str | Path | BinaryIO) -> bool:
    """Returns whether a file is a NumPy array or DICOM, by its name, or by its first bytes if that says nothing."""
    if isinstance(file, str | Path):
        ending = os.path.splitext(file)[1].lower()
        if ending in (ARRAY_EXTENSION, *DICOM_EXTENSIONS) or ending in EXTENSIONS or not os.path.isfile(file):
            return ending in (ARRAY_EXTENSION, *DICOM_EXTENSIONS)
    start = read_start(file)
    if not isinstance(file, str | Path):
        file.seek(0)
    return start.startswith(NPY_MAGIC) or is_dicom(start)


def read_size(file: str | Path | BinaryIO, name: str | None = None) -> tuple[int, int]:
    """Returns height and width from the file's header, before EXIF rotation; raises `ImageError`."""
    if header := find_other_bands(file, name):
        return header.height, header.width
    with open_image(file, name) as image:
        return image.height, image.width


def read_upright_size(file: str | Path | BinaryIO) -> tuple[int, int]:
    """Returns height and width after EXIF rotation, from the file's header; raises `ImageError`."""
    if header := find_other_bands(file):
        is_turned = header.orientation in range(5, 9)
        return (header.width, header.height) if is_turned else (header.height, header.width)
    with open_image(file) as image:
        is_turned = image.getexif().get(EXIF_ORIENTATION, 1) in range(5, 9)
        return (image.width, image.height) if is_turned else (image.height, image.width)


def find_other_bands(file: str | Path | BinaryIO, name: str | None = None) -> BandHeader | None:
    """Returns the header of a file that Pillow cannot read as an image, because of its bands."""
    with translate_errors(file, name):
        header = find_bands(file)
    return header if header and (header.format in ("NPY", "DICOM") or not header.is_plain) else None


def display_name(file: str | Path | BinaryIO, name: str | None) -> str:
    return name or (str(file) if isinstance(file, str | Path) else "image")


@contextmanager
def open_image(file: str | Path | BinaryIO, name: str | None = None) -> Iterator[Image.Image]:
    """Opens a file with Pillow; turns every error inside the context into an `ImageError`."""
    hide_warnings("PIL")  # our own limits are lower
    with translate_errors(file, name), Image.open(file, formats=readable_formats()) as image:
        if image.width * image.height > MAX_PIXELS:
            reason = f"{image.width}x{image.height} pixels are above the limit of {MAX_PIXELS:,}"
            raise ImageError(display_name(file, name), reason)
        yield image


@contextmanager
def translate_errors(file: str | Path | BinaryIO, name: str | None = None) -> Iterator[None]:
    """Turns every error inside the context into an `ImageError`; first refuses a folder, a pipe and a device."""
    name = display_name(file, name)
    try:
        if isinstance(file, str | Path):
            refuse_special_file(file, name)
        yield
    except ImageError:
        raise
    except BandsError as error:
        raise ImageError(name, str(error)) from None
    except FileNotFoundError:
        raise ImageError(name, "there is no such file") from None
    except UnidentifiedImageError:
        raise ImageError(name, explain_unread(read_start(file))) from None
    except PermissionError:
        raise ImageError(name, "no permission to read it") from None
    except Image.DecompressionBombError:  # Pillow's limit is higher than ours
        raise ImageError(name, f"more pixels than the limit of {MAX_PIXELS:,}") from None
    except OSError as error:  # Pillow's own errors have no errno
        error_type = ImageUnreachable if error.errno in TRANSIENT_ERRNOS else ImageError
        raise error_type(name, error.strerror or f"damaged or truncated ({error})") from None
    except MemoryError:  # not necessarily the image's fault
        raise
    except Exception as error:  # a damaged file makes Pillow raise many types (TypeError in the tags of a TIFF)
        raise ImageError(name, f"damaged or truncated ({error})") from None


def explain_unread(start: bytes) -> str:
    """Returns why a file that starts with these bytes cannot be read as an image."""
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
        return explain_heif()
    if start[4:12] == b"ftypavif":
        return explain_avif()
    if start.startswith(TIFF_MAGICS):
        return "it is a damaged TIFF, or has other channels or values than a gray or color image of 8 bits"
    for offset, magic, name in MAGIC:
        if start[offset : offset + len(magic)] == magic:
            return f"{name} files are not read; {CONVERT_HINT}"
    return f"not an image, or not one of {', '.join(readable_formats())}"


def explain_avif() -> str:
    if features.check("avif"):
        return "it is a damaged AVIF"
    return f"it is an AVIF that this Pillow cannot read; update Pillow, or {CONVERT_HINT}"


def explain_heif() -> str:
    if "HEIF" in readable_formats():
        return "it is a damaged HEIC"
    return f"it is a HEIC, and reading it needs pi-heif: {install_hint('heif')}, or {CONVERT_HINT}"


def read_start(file: str | Path | BinaryIO) -> bytes:
    """Returns the first bytes of a file; none if it cannot be read again."""
    try:
        if isinstance(file, str | Path):
            with open(file, "rb") as stream:
                return stream.read(START_BYTES)
        file.seek(0)
        return file.read(START_BYTES)
    except OSError:
        return b""


def refuse_special_file(file: str | Path, name: str) -> None:
    """Raises `ImageError` for a folder, and for a pipe or device, which could be read forever."""
    mode = os.stat(file).st_mode
    if not stat.S_ISREG(mode):
        raise ImageError(name, f"this is a {'folder' if stat.S_ISDIR(mode) else 'pipe or device'}, not an image")


def load_8_bit(image: Image.Image, was_16_bit: bool) -> Image.Image:
    """Loads an image with 8 bits per channel and the same orientation; raises `UnclearRange`.

    `was_16_bit` says whether the file has several channels of 16 bits.
    """
    if has_more_than_8_bits(image.mode):
        image.load()
        scaled = scale_to_8_bits(image)
        scaled.getexif()[EXIF_ORIENTATION] = image.getexif().get(EXIF_ORIENTATION, 1)
        return scaled
    image.load()
    if was_16_bit:
        check_brightness(image)
    return image


def remove_transparency(image: Image.Image) -> Image.Image:
    """Puts an image over the background if it is transparent anywhere."""
    if not image.has_transparency_data:
        return image
    rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, (*BACKGROUND, 255))
    return Image.alpha_composite(canvas, rgba).convert("RGB")
