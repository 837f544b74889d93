"""The images that Python users have -> uint8 pixels (C, h, w): files, bytes, PIL images, arrays, tensors.

The type of an image decides how it is read, never its values or the images beside it: arrays are (h, w), (h, w, 1),
(h, w, 3) or (h, w, 4), tensors (h, w), (1, h, w), (3, h, w) or (4, h, w); both are uint8, or floats from 0 to 1, which
are rounded to the nearest of the 256 values. Any other number of channels, and integers of other types, are bands:
their values are kept.
"""

import io
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.data.band_files import to_tensor
from vitrail.data.bands import MAX_CHANNELS, Bands, BandsError, Channels, type_of_array
from vitrail.data.decode import ImageError, decode
from vitrail.errors import UsageError

ImageInput = str | Path | bytes | Image.Image | np.ndarray | Tensor
KINDS = "a file, bytes, a PIL image, an array (h, w, C) or a tensor (C, h, w)"


def is_one_image(images: Any) -> bool:
    """Returns whether this is one image, and not several; raises `UsageError` for neither.

    Several are an array (n, h, w, C), a tensor (n, C, h, w), an array of paths, or any other iterable.
    """
    if isinstance(images, str | Path | bytes | bytearray | Image.Image):
        return True
    if isinstance(images, np.ndarray):
        return images.ndim < 4 and not is_list_of_paths(images)
    if isinstance(images, Tensor):
        return images.ndim < 4
    if isinstance(images, Iterable) and not isinstance(images, Mapping | AbstractSet):
        return False
    raise UsageError(f"an image cannot be a {type(images).__name__}", f"give {KINDS}, or a list of them")


def is_list_of_paths(array: np.ndarray) -> bool:
    return array.ndim == 1 and array.dtype.kind in "UOT"


def to_pixels(image: ImageInput, channels: Channels, name: str | None = None) -> Tensor:
    """Returns uint8 pixels (C, h, w), with 1 channel (gray) or 3 (RGB), or the values of bands.

    Raises `ImageError` for an image that cannot be read, for pixels that are neither uint8 nor floats in [0, 1], and
    for other bands than those wanted.
    """
    if isinstance(image, str | Path):
        return decode(image, channels, name)
    name = name or "image"
    if isinstance(channels, Bands):
        return to_bands(image, channels, name)
    if isinstance(image, bytes | bytearray):
        return decode(io.BytesIO(image), channels, name)
    if isinstance(image, Image.Image):
        return decode_pil(image, channels, name)
    if isinstance(image, np.ndarray):
        array = np.ascontiguousarray(image) if image.flags.writeable else image.copy()
        pixels = torch.from_numpy(array) if is_numeric(image) else None
        if pixels is None:
            raise ImageError(name, f"an array of {image.dtype} has no pixels; give uint8, or floats from 0 to 1")
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
            batch = "; several gray images are (n, h, w, 1)" if pixels.ndim == 3 else ""
            shapes = "(h, w), (h, w, 1), (h, w, 3) or (h, w, 4)"
            raise ImageError(name, f"an array must be {shapes}, not {image.shape}{batch}")
        return with_channels(to_uint8(pixels, name).permute(2, 0, 1), channels, name)
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or pixels.shape[0] not in (1, 3, 4):
            raise ImageError(name, f"a tensor must be ({channels}, h, w), not {tuple(image.shape)}")
        return with_channels(to_uint8(pixels, name), channels, name)
    raise UsageError(f"{'an image' if name == 'image' else name} cannot be a {type(image).__name__}", f"give {KINDS}")


def to_bands(image: ImageInput, bands: Bands, name: str) -> Tensor:
    """Returns the values of an image, (C, h, w); arrays are (h, w, C), tensors (C, h, w).

    A tensor of float32 may have the values of any type but uint8, as `decode` returns them. Raises `ImageError`.
    """
    if isinstance(image, bytes | bytearray):
        return decode(io.BytesIO(image), bands, name)
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        try:
            image.save(buffer, "TIFF" if image.mode in ("F", "I", "I;16B", "I;16L") else "PNG")
        except OSError:  # such as CMYK
            raise ImageError(name, f"it is a Pillow image of the mode {image.mode}, and not {bands}") from None
        return decode(io.BytesIO(buffer.getvalue()), bands, name)
    if not isinstance(image, np.ndarray | Tensor):
        raise UsageError(
            f"{'an image' if name == 'image' else name} cannot be a {type(image).__name__}", f"give {KINDS}"
        )
    array = to_array(image) if isinstance(image, Tensor) else image
    try:
        if array.ndim not in (2, 3):
            raise BandsError(f"its shape is {array.shape}, not that of one image")
        array_CHW = np.atleast_3d(array) if isinstance(image, np.ndarray) else array.reshape(-1, *array.shape[-2:])
        array_CHW = np.moveaxis(array_CHW, 2, 0) if isinstance(image, np.ndarray) else array_CHW
        is_any = isinstance(image, Tensor) and image.dtype == torch.float32 and bands.values != "uint8"
        found = Bands(len(array_CHW), bands.values if is_any else type_of_array(array.dtype))
        if found != bands:
            raise BandsError(f"it has {found}, and not {bands}")
        return to_tensor(array_CHW)
    except BandsError as error:
        raise ImageError(name, str(error)) from None


def find_array_channels(image: Any) -> Channels:
    """Returns 1 for a gray image, 3 for a color image, and the bands of an array or tensor that has others.

    Floats with 1, 3 or 4 channels are color or gray images, from 0 to 1.
    """
    if isinstance(image, np.ndarray | Tensor):
        count = 1 if image.ndim == 2 else int(image.shape[-1 if isinstance(image, np.ndarray) else 0])
        is_image_type = str(image.dtype).removeprefix("torch.") == "uint8" or is_float(image)
        if is_image_type and count in (1, 3, 4):
            return 1 if count == 1 and (isinstance(image, np.ndarray) or image.ndim == 3) else 3
        if not 1 <= count <= MAX_CHANNELS or (isinstance(image, np.ndarray) and not is_numeric(image)):
            return 3  # reading it raises the error
        dtype = image.dtype if isinstance(image, np.ndarray) else to_array(image[:0]).dtype
        try:
            return Bands(count, type_of_array(dtype))
        except BandsError:
            return 3
    mode = getattr(image, "mode", None)
    return 1 if mode in ("1", "L", "LA", "I", "F", "I;16") else 3


def to_array(tensor: Tensor) -> np.ndarray:
    """Returns the values of a tensor; floats of fewer than 32 bits as float32, because NumPy lacks some of them."""
    is_short = tensor.is_floating_point() and tensor.dtype.itemsize < 4
    array: np.ndarray = (tensor.float() if is_short else tensor).detach().cpu().numpy()
    return array


def is_float(image: np.ndarray | Tensor) -> bool:
    return image.dtype.kind == "f" if isinstance(image, np.ndarray) else image.is_floating_point()


def is_numeric(array: np.ndarray) -> bool:
    """Returns whether torch has the type of an array."""
    return array.dtype.kind in "uif" and array.dtype.itemsize <= 8 and array.dtype.isnative


def decode_pil(image: Image.Image, channels: int, name: str) -> Tensor:
    """Returns the pixels that a lossless file of the image would have, with its rotation and transparency."""
    buffer = io.BytesIO()
    try:
        if image.mode in ("CMYK", "YCbCr", "HSV", "LAB"):  # PNG has none of them
            image = image.convert("RGB")
        kind = "TIFF" if image.mode in ("F", "I", "I;16B", "I;16L") else "PNG"
        image.save(buffer, kind, exif=image.getexif(), **({"compress_level": 0} if kind == "PNG" else {}))
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(name, f"the PIL image cannot be read ({error})") from None
    return decode(io.BytesIO(buffer.getvalue()), channels, name)


def to_uint8(pixels: Tensor, name: str) -> Tensor:
    """Returns uint8 pixels; raises `ImageError` for floats outside [0, 1] and for other types."""
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise ImageError(name, f"pixels must be uint8 or floats from 0 to 1, not {str(pixels.dtype).split('.')[1]}")
    if not pixels.numel():
        raise ImageError(name, "it has no pixels")
    low, high = pixels.min().item(), pixels.max().item()
    if not (low >= 0 and high <= 1):  # NaN too
        raise ImageError(
            name,
            f"floats must be from 0 to 1, without normalization; these are from {low:.4g} to {high:.4g}",
        )
    return (pixels.double() * 255).round().to(torch.uint8)


def with_channels(pixels_CHW: Tensor, channels: int, name: str) -> Tensor:
    """Returns the pixels with 1 or 3 channels, as the decoder would: gray is repeated, transparency put over white."""
    if len(pixels_CHW) == channels:
        return pixels_CHW
    array = pixels_CHW.permute(1, 2, 0).contiguous().numpy()
    return decode_pil(Image.fromarray(array[..., 0] if array.shape[2] == 1 else array), channels, name)
