"""Resizes, crops and converts images with the same results as torchvision.

The command line does not import torchvision: it imports torch's compiler, which takes longer than all other imports
together. tests/test_geometry.py compares each function with torchvision, bit for bit.
"""

import platform

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601, as torchvision rounds them)


def resize(image: Tensor, height: int, width: int, interpolation: str = "bilinear") -> Tensor:
    """Resizes images (..., C, H, W) with antialiasing; `nearest-exact` has none. Keeps the number format."""
    *batch, channels, h, w = image.shape
    if (h, w) == (height, width):
        return image
    if not image.numel():
        return image.reshape(*batch, channels, height, width)
    is_nearest = interpolation == "nearest-exact"
    pixels = image.reshape(-1, channels, h, w)
    if pixels.is_contiguous(memory_format=torch.channels_last) and len(pixels) == 1:
        # One image (H, W, C) in memory: with this stride torch writes the result in the same order, without a copy.
        pixels = pixels.as_strided(pixels.shape, (image.numel(), *pixels.stride()[1:]))
    is_direct = image.is_floating_point()
    if image.dtype == torch.uint8:
        is_direct = has_uint8_kernel(image, height * width, interpolation)
    if not is_direct:
        pixels = pixels.float()
    options = {} if is_nearest else {"align_corners": False, "antialias": True}
    pixels = F.interpolate(pixels, (height, width), mode=interpolation, **options)
    if not is_direct:
        if interpolation == "bicubic" and image.dtype == torch.uint8:
            pixels = pixels.clamp(0, 255)
        pixels = pixels.round().to(image.dtype)
    return pixels.reshape(*batch, channels, height, width)


def has_uint8_kernel(image: Tensor, resized_pixels: int, interpolation: str) -> bool:
    """Returns whether torch interpolates these uint8 pixels directly, and as precisely as torchvision requires."""
    if interpolation == "nearest-exact":
        return True
    if image.device.type != "cpu" or resized_pixels == 1:  # torch 2.15 fails for color images and one pixel
        return False
    is_fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in (
        "aarch64",
        "arm64",
    )
    return interpolation == "bicubic" or is_fast


def resize_with_pillow(image_CHW: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """Resizes a uint8 image with Pillow, whose results differ from torch's by rounding."""
    pixels_HWC = image_CHW.permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels_HWC[:, :, 0] if len(image_CHW) == 1 else pixels_HWC)
    resized = np.array(image.resize((width, height), RESAMPLING[interpolation]))
    return torch.from_numpy(resized.reshape(height, width, -1)).permute(2, 0, 1).contiguous()


def crop(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Returns a window of images (..., H, W); what lies outside of the image is 0."""
    h, w = image.shape[-2:]
    bottom, right = top + height, left + width
    inside = image[..., max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    padding = (max(-left, 0), max(right - max(w, left), 0), max(-top, 0), max(bottom - max(h, top), 0))
    return F.pad(inside, padding) if any(padding) else inside


def center_crop(image: Tensor, height: int, width: int) -> Tensor:
    """Returns the center of images (..., H, W), with zeros around them if they are smaller.

    An odd margin of the cut is rounded to the even half, that of the zeros is smaller at the top and the left.
    """
    h, w = image.shape[-2:]
    top = -((height - h) // 2) if height > h else round((h - height) / 2)
    left = -((width - w) // 2) if width > w else round((w - width) / 2)
    return crop(image, top, left, height, width)


def to_gray(image: Tensor) -> Tensor:
    """Returns the luminance of RGB images (..., 3, H, W) as (..., 1, H, W); gray images are copied."""
    if image.shape[-3] == 1:
        return image.clone()
    red, green, blue = image.unbind(-3)
    weights = GRAY_WEIGHTS
    return (
        (red.mul(weights[0]).add_(green, alpha=weights[1]).add_(blue, alpha=weights[2])).unsqueeze(-3).to(image.dtype)
    )


def to_rgb(image: Tensor) -> Tensor:
    """Returns gray images (..., 1, H, W) with three equal channels; other images are returned as they are."""
    return image if image.shape[-3] >= 3 else image.repeat(*[1] * (image.ndim - 3), 3, 1, 1)
