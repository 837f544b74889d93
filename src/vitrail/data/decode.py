"""One decoder for every image file: from `check` and `train` to `predict` and `serve`."""

import errno
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vitrail.errors import VitrailError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)
MAX_PIXELS = 100_000_000  # read from the header, before anything is decoded
STRIP = 1 << 20  # pixels of a deep image that are float64 at a time
ORIENTATION = 0x0112  # EXIF
GRAY_16_BIT = "16-bit grey"
COLOR_TYPES = {"1": "grey", "L": "grey", "LA": "grey", "RGB": "colour", "RGBA": "colour", "P": "palette", "PA": "palette",
         "I": GRAY_16_BIT, "F": GRAY_16_BIT, "I;16": GRAY_16_BIT, "I;16B": GRAY_16_BIT, "I;16L": GRAY_16_BIT, "I;16N": GRAY_16_BIT}  # fmt: skip
TRANSIENT_ERRNOS = frozenset(
    (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
)  # no fault of the file's
BACKGROUND = (255, 255, 255)  # what shows through where an image is transparent


class ImageError(VitrailError):
    """An image that cannot be read; the sentence names it and says why."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}", "replace the file or take it out of the data")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        """What pickle needs to carry the error out of a worker process."""
        return type(self), (self.name, self.reason)


class ImageUnreachable(ImageError):
    """An image that cannot be read now, though nothing is known to be wrong with it: its disk or address fails."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.hint = "it may be there again later"


@dataclass(frozen=True)
class ImageHeader:
    """What a file is, before it becomes 8-bit pixels."""

    format: str  # JPEG, PNG, ...
    color_type: str  # grey, colour, 16-bit grey, palette, CMYK, ...
    is_transparent: bool
    is_rotated: bool  # stored lying down, with an orientation in EXIF
    is_animated: bool


def decode(file: str | Path | BinaryIO, channels: int = 3, name: str | None = None) -> Tensor:
    """The pixels of an image file as uint8 (C, H, W), upright, C being 1 (grey) or 3 (RGB).

    The orientation in EXIF is applied, 16-bit grey is scaled (not clipped), transparency is put over white, of an
    animation the first frame is taken; a colour profile (ICC) is not applied. Raises `ImageError` naming the file.
    """
    return decode_with_header(file, channels, name)[0]


def decode_with_header(
    file: str | Path | BinaryIO, channels: int = 3, name: str | None = None
) -> tuple[Tensor, ImageHeader]:
    """What `decode` gives, and what the file is."""
    with open_image(file, name) as image:
        header = ImageHeader(
            format=str(image.format),
            color_type=COLOR_TYPES.get(image.mode, image.mode),
            is_transparent=image.has_transparency_data,
            is_rotated=image.getexif().get(ORIENTATION, 1) in range(2, 9),
            is_animated=bool(getattr(image, "is_animated", False)),
        )
        if image.mode == "LAB":  # Pillow cannot turn it into RGB without a profile
            raise ImageError(display_name(file, name), "its colours are in LAB; save it as RGB")
        image.load()
        upright = _eight_bit(ImageOps.exif_transpose(image))
        array = np.array(upright.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).contiguous(), header


def read_size(file: str | Path | BinaryIO, name: str | None = None) -> tuple[int, int]:
    """Height and width as the file's header says, before EXIF turns it; raises `ImageError` naming the file."""
    with open_image(file, name) as image:
        return image.height, image.width


def display_name(file: str | Path | BinaryIO, name: str | None) -> str:
    """What a file is called in a sentence."""
    return name or (str(file) if isinstance(file, str | Path) else "image")


@contextmanager
def open_image(file: str | Path | BinaryIO, name: str | None = None) -> Iterator[Image.Image]:
    """The file opened by Pillow; whatever goes wrong inside is an `ImageError` that names it and says why."""
    name = display_name(file, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bomb warning: our own limit is lower, and raises
            if isinstance(file, str | Path) and not stat.S_ISREG(kind := os.stat(file).st_mode):
                what = "a folder" if stat.S_ISDIR(kind) else "a pipe or device"  # which could be read for ever
                raise ImageError(name, f"this is {what}, not an image")
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(
                        name, f"{image.width}x{image.height} pixels are more than the {MAX_PIXELS:,} that are read"
                    )
                yield image
    except FileNotFoundError:
        raise ImageError(name, "there is no such file") from None
    except UnidentifiedImageError:
        raise ImageError(name, f"not an image, or not one of {', '.join(FORMATS)}") from None
    except PermissionError:
        raise ImageError(name, "may not be read") from None
    except ImageError:
        raise
    except Image.DecompressionBombError:  # raised by Pillow on opening, above a limit higher than ours
        raise ImageError(name, f"more than the {MAX_PIXELS:,} pixels that are read") from None
    except OSError as error:  # Pillow's own have no number
        blamed = ImageUnreachable if error.errno in TRANSIENT_ERRNOS else ImageError
        raise blamed(name, error.strerror or f"damaged or cut short ({error})") from None
    except MemoryError:  # whose it is nobody knows
        raise
    except Exception as error:  # a damaged file can make Pillow raise nearly anything (TypeError in a TIFF's tags)
        raise ImageError(name, f"damaged or cut short ({error})") from None


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image in an 8-bit mode without transparency."""
    if image.mode.startswith(("I", "F")):  # Pillow's own conversion clips these at 255
        values = np.asarray(image)
        full = 65535 if image.mode != "F" else 1 if values.max(initial=0) <= 1 else 255
        eight = np.empty(values.shape, np.uint8)
        rows = max(1, STRIP // image.width)
        for at in range(0, image.height, rows):
            scaled = values[at : at + rows].astype(np.float64) * 255 / full
            eight[at : at + rows] = np.nan_to_num(scaled).clip(0, 255).round()
        return Image.fromarray(eight)
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        canvas = Image.new("RGBA", shown.size, (*BACKGROUND, 255))
        return Image.alpha_composite(canvas, shown).convert("RGB")
    return image
