"""Preprocessing: from the pixels of an image to the input of the model; stored with the weights and used everywhere."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from vitrail.data import geometry
from vitrail.data.bands import MAX_CHANNELS, VALUE_TYPES, Bands, Channels, ValueType, as_channels
from vitrail.data.options import Fit, Interpolation
from vitrail.documents import PreprocessDocument
from vitrail.errors import UsageError, did_you_mean
from vitrail.options import check_fields, option

MIN_STD, MAX_MEAN = 1e-6, 1000.0  # for pixels in [0, 1]; values beyond are mistakes
MAX_CANVAS_SCALE = 4  # the padded canvas for random crops is at most this many times the model's size
MAX_ENLARGED_PIXELS = 1 << 25  # a crop of a long, thin image may enlarge it to this many pixels
Engine = Literal["torch", "pillow", "transformers"]  # pillow: the transforms of torchvision and timm for PIL images
MAX_VALUE = 1e30  # of bands, whose values may be of any unit
PICTURE_STDS = 2  # of bands: from black to white in pictures, below and above the mean


class ImageSizeError(ValueError):
    """An image that is too small or too thin for the model; the text is the reason."""


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes a float tensor (C, H, W).

    `fit` treats images whose aspect ratio differs from the model's: `pad` keeps the whole image and its proportions,
    `crop` takes the center, `stretch` keeps the whole image and changes its proportions. With a `crop_fraction` below
    one, `crop` and `stretch` resize to more than the model's size and take the center of that (224 of 256 is 0.875).
    With a `trim`, the image is fitted to the model's size and that many rows and columns more, which are then cut off
    at the bottom and at the right: a model of 378 pixels whose library prepares 384.

    `mean` and `std` have a value per channel: of pixels scaled to 0 to 1 if `values` is uint8, else of the values that
    the files have. `shown` are the channels that pictures show, one or three, counted from 1.
    """

    image_size: tuple[int, int]
    fit: Fit = "pad"
    crop_fraction: float = option(1.0, "fraction of the resized image's size that the center crop keeps", gt=0, le=1)
    interpolation: Interpolation = "bilinear"
    engine: Engine = "torch"  # the library whose resize and crop are reproduced; they differ by a pixel or a bit
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    min_size: int = option(1, "minimum height and width of an image; smaller ones are refused", ge=1)
    trim: tuple[int, int] = (0, 0)  # rows and columns that are cut off at the bottom and at the right
    values: ValueType = "uint8"  # type of the values in the files
    shown: tuple[int, ...] = ()  # of bands; empty: the first three, or the first

    def __post_init__(self) -> None:
        for name in ("image_size", "mean", "std", "trim", "shown"):
            if isinstance(getattr(self, name), list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_fields(self)
        if min(self.image_size) < 1:
            raise UsageError(f"image_size is {self.image_size}; height and width must be at least 1")
        if min(self.trim) < 0:
            raise UsageError(f"trim is {self.trim}; rows and columns must be at least 0")
        if self.values not in VALUE_TYPES:
            raise UsageError(f"values is {self.values!r}", f"one of {', '.join(VALUE_TYPES)}")
        scale = (*map(abs, self.mean), *self.std)
        largest = MAX_MEAN if self.values == "uint8" else MAX_VALUE
        is_sane = min(self.std, default=0) >= MIN_STD and max(scale) <= largest
        if len(self.mean) != len(self.std) or len(self.mean) > MAX_CHANNELS or not is_sane:
            raise UsageError(f"mean {self.mean} and std {self.std} are not valid for normalization")
        check_shown(self.shown, self.channels)

    @property
    def channels(self) -> int:
        """The number of channels: 1 for gray, 3 for color, any number of bands."""
        return len(self.mean)

    @property
    def source_channels(self) -> Channels:
        """The channels that image files must have, or to which they are converted."""
        return as_channels(Bands(self.channels, self.values))

    @property
    def has_bands(self) -> bool:
        """Whether images are not 8-bit gray or color ones."""
        return isinstance(self.source_channels, Bands)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of pixels."""
        return torch.uint8 if self.values == "uint8" else torch.float32

    @property
    def mean_color(self) -> list[int]:
        """The mean as 0 to 255 for each channel."""
        return [min(max(round(255 * m), 0), 255) for m in self.mean]

    @property
    def mean_pixel(self) -> list[int] | list[float]:
        """The mean as a value of pixels for each channel."""
        return self.mean_color if self.values == "uint8" else list(self.mean)

    def refuse_bands(self, reason: str, hint: str) -> None:
        """Raises `UsageError` with a reason if images have bands."""
        if self.has_bands:
            raise UsageError(f"{reason}, and this model takes {self.source_channels}", hint)

    def blank(self, n: int = 1) -> Tensor:
        """Returns images of the model's size in one color, (n, C, H, W): gray, or the mean of bands."""
        pixel = self.mean_pixel if self.has_bands else [128] * self.channels
        color = torch.tensor(pixel, dtype=self.dtype)[:, None, None]
        return color.expand(n, -1, *self.image_size).contiguous()

    def to_picture(self, pixels: Tensor) -> Tensor:
        """Returns images (..., C, h, w) as uint8 with one or three channels, as pictures show them.

        Bands are those `shown`; the mean minus two standard deviations is black, the mean plus two is white.
        """
        if not self.has_bands:
            return pixels
        chosen = torch.tensor(self.shown or ((1, 2, 3) if self.channels >= 3 else (1,))) - 1
        scale = 255 if self.values == "uint8" else 1
        mean, std = (scale * torch.tensor(each)[chosen, None, None] for each in (self.mean, self.std))
        scaled = (pixels[..., chosen, :, :].float() - mean) / (2 * PICTURE_STDS * std) + 0.5
        return (255 * scaled.clamp(0, 1)).round().to(torch.uint8)

    @property
    def fitted_size(self) -> tuple[int, int]:
        """Height and width before `trim` is cut off."""
        return self.image_size[0] + self.trim[0], self.image_size[1] + self.trim[1]

    def check_size(self, h: int, w: int) -> None:
        """Raises `ImageSizeError` for an image below `min_size`, and for one that a crop would enlarge enormously."""
        if min(h, w) < self.min_size:
            raise ImageSizeError(f"{w}x{h} pixels are fewer than a patch of {self.min_size}")
        height, width = self.fitted_size
        new_h, new_w = self.resized_size(h, w)
        max_pixels = max(h * w, MAX_ENLARGED_PIXELS, MAX_CANVAS_SCALE * height * width)
        if self.fit == "crop" and new_h * new_w > max_pixels:  # a file of a few KB would need gigabytes
            raise ImageSizeError(f"{w}x{h} pixels are too thin: a crop would enlarge them to {new_w}x{new_h}")

    def resized_size(self, h: int, w: int) -> tuple[int, int]:
        """Returns the size to which an image of h x w pixels is resized, before it is padded or cropped."""
        height, width = self.fitted_size
        if self.fit == "pad":
            scale = min(height / h, width / w)
            return min(height, max(1, round(h * scale))), min(width, max(1, round(w * scale)))
        new_h, new_w = round(height / self.crop_fraction), round(width / self.crop_fraction)
        if self.fit == "crop":  # the longer dimension is rounded down, as in torchvision, timm and transformers
            return (
                (new_h, max(new_w, new_h * w // h)) if h * new_w <= w * new_h else (max(new_h, new_w * h // w), new_w)
            )
        return new_h, new_w

    def fit_image(self, image_CHW: Tensor) -> Tensor:
        """Resizes, pads and crops an image (C, h, w) to the model's size, (C, H, W); the number format stays.

        Raises `ImageSizeError` as `check_size` does.
        """
        height, width = self.fitted_size
        h, w = image_CHW.shape[-2:]
        self.check_size(h, w)
        resized_CHW = self.resize(image_CHW, *self.resized_size(h, w))
        finish = self.pad if self.fit == "pad" else self.center_crop
        fitted_CHW = finish(resized_CHW, height, width)
        return fitted_CHW[:, : self.image_size[0], : self.image_size[1]].contiguous() if any(self.trim) else fitted_CHW

    def fit_canvas(self, image_CHW: Tensor) -> Tensor:
        """Returns the image from which random crops are taken: with fit `pad` padded to the model's aspect ratio.

        The canvas is at most `MAX_CANVAS_SCALE` times the model's size, so that a long, thin image does not fill the
        memory. Raises `ImageSizeError` as `check_size` does.
        """
        height, width = self.image_size
        h, w = image_CHW.shape[-2:]
        self.check_size(h, w)
        if self.fit != "pad" or h * width == w * height:
            return image_CHW
        scale = min(1.0, MAX_CANVAS_SCALE * min(height / h, width / w))
        image_CHW = self.resize(image_CHW, max(1, round(h * scale)), max(1, round(w * scale)))
        h, w = image_CHW.shape[-2:]
        return self.pad(image_CHW, max(h, round(w * height / width)), max(w, round(h * width / height)))

    def resize(self, image_CHW: Tensor, height: int, width: int) -> Tensor:
        """Resizes with antialiasing."""
        if image_CHW.shape[-2:] == (height, width):
            return image_CHW
        is_pillow = self.engine == "pillow" and not self.has_bands  # Pillow has no images of bands
        function = geometry.resize_with_pillow if is_pillow else geometry.resize
        return function(image_CHW, height, width, self.interpolation)

    def pad(self, image_CHW: Tensor, height: int, width: int) -> Tensor:
        """Centers the image on a canvas of the mean color."""
        h, w = image_CHW.shape[-2:]
        top, left = (height - h) // 2, (width - w) // 2
        canvas = torch.tensor(self.mean_pixel, dtype=self.dtype)[:, None, None]
        canvas = canvas.expand(-1, height, width).clone()
        canvas[:, top : top + h, left : left + w] = image_CHW
        return canvas

    def center_crop(self, image_CHW: Tensor, height: int, width: int) -> Tensor:
        if self.engine != "transformers":
            return geometry.center_crop(image_CHW, height, width)
        h, w = image_CHW.shape[-2:]  # transformers rounds an odd margin down, the others round it up
        return geometry.crop(image_CHW, (h - height) // 2, (w - width) // 2, height, width)

    def normalize(self, pixels_BCHW: Tensor) -> Tensor:
        """Returns the model's input for pixels of its size, float32 on the device of the pixels."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=pixels_BCHW.device).view(shape)
        std = torch.tensor(self.std, device=pixels_BCHW.device).view(shape)
        return ((pixels_BCHW / 255 if self.values == "uint8" else pixels_BCHW) - mean) / std

    def with_image_size(self, image_size: tuple[int, int]) -> "Preprocess":
        """Returns a copy for another image size, of which nothing is cut off."""
        return self if image_size == self.image_size else replace(self, image_size=image_size, trim=(0, 0))

    def with_shown(self, shown: str) -> "Preprocess":
        """Returns a copy whose pictures show these channels, such as "4,3,2"; raises `UsageError`."""
        if not self.has_bands:
            raise UsageError("shown_channels is for images of bands, and these are 8-bit gray or color images")
        parts = [part.strip() for part in shown.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise UsageError(f"shown_channels is {shown!r}", "write one or three numbers, such as 4,3,2")
        return replace(self, shown=tuple(map(int, parts)))

    def to_json(self) -> PreprocessDocument:
        """Returns the fields, without those of bands and a `trim` of nothing, as earlier versions wrote them."""
        document = cast(PreprocessDocument, asdict(self))
        if not any(self.trim):
            del document["trim"]
        if not self.has_bands:
            del document["values"], document["shown"]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Preprocess":
        """Reads what `to_json` wrote; raises `UsageError` for an unknown field or an impossible value."""
        known = {f.name for f in fields(cls)}
        for name in document:
            if name not in known:
                raise UsageError(f"the preprocessing has no field {name!r}", did_you_mean(name, known))
        if "image_size" not in document:
            raise UsageError("the preprocessing lacks image_size")
        return cls(**document)


def check_shown(shown: tuple[int, ...], channels: int) -> None:
    """Raises `UsageError` unless pictures can show these channels, counted from 1."""
    if len(shown) not in (0, 1, 3) or not all(1 <= each <= channels for each in shown):
        text = ", ".join(map(str, shown))
        raise UsageError(
            f"pictures cannot show the channels {text} of {channels}", f"one or three, from 1 to {channels}"
        )
