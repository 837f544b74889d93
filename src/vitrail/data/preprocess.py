"""Pixels -> what the model sees: one preprocessing, stored with the weights, used by every verb."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode

from vitrail.errors import UsageError, did_you_mean
from vitrail.options import check_fields, option

SMALLEST_STD, LARGEST_MEAN = 1e-6, 1000.0  # of pixels from 0 to 1: beyond these a normalisation is a mistake
OVERSIZE = 4  # a padded canvas from which random crops are taken is at most so many times the model's size
ENLARGED = 1 << 25  # pixels to which a crop may enlarge what is far from the model's proportions
Fit = Literal["pad", "crop", "stretch"]
Interpolation = Literal["bilinear", "bicubic"]
# pillow: torchvision's and timm's transforms of PIL images
Engine = Literal["torch", "pillow", "transformers"]


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes (C, H, W) floats.

    `fit` says what becomes of another shape than the model's: `pad` keeps everything and the proportions, `crop`
    takes the middle, `stretch` keeps everything and bends the proportions. Both resize to more than the model's size and
    take the middle of it where `crop_fraction` is below one (224 of 256 is 0.875). Images with a side below `min_size`
    pixels are refused, and so are those of which a crop would first make far more pixels than they have.
    """

    image_size: tuple[int, int]
    fit: Fit = "pad"
    crop_fraction: float = option(1.0, "part of the resized image that a crop takes", gt=0, le=1)
    interpolation: Interpolation = "bilinear"
    engine: Engine = "torch"  # whose arithmetic resizes and crops; they differ in the last pixel and the last bit
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    min_size: int = option(1, "shortest side that is accepted", ge=1)

    def __post_init__(self) -> None:
        for name in ("image_size", "mean", "std"):
            if isinstance(getattr(self, name), list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_fields(self)
        if min(self.image_size) < 1:
            raise UsageError(f"image_size is {self.image_size}; both sides must be at least 1")
        numbers = (*map(abs, self.mean), *self.std)
        sane = min(self.std, default=0) >= SMALLEST_STD and max(numbers) <= LARGEST_MEAN
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3) or not sane:
            raise UsageError(f"mean {self.mean} and std {self.std} do not make a normalisation")

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return len(self.mean)

    @property
    def mean_color(self) -> list[int]:
        """The mean as a colour of 0 to 255 for each channel."""
        return [min(max(round(255 * m), 0), 255) for m in self.mean]

    def check_size(self, h: int, w: int) -> None:
        """Raises `ValueError` for an image of h x w pixels that is too small to show anything or too thin to crop."""
        if min(h, w) < self.min_size:
            raise ValueError(f"{w}x{h} pixels are fewer than a patch of {self.min_size}")
        height, width = self.image_size
        tall, wide = self.resized_size(h, w)
        most = max(h * w, ENLARGED, OVERSIZE * height * width)
        if self.fit == "crop" and tall * wide > most:  # a file of a few KB would become gigabytes
            raise ValueError(f"{w}x{h} pixels are too thin: a crop would have to make them {wide}x{tall}")

    def resized_size(self, h: int, w: int) -> tuple[int, int]:
        """Height and width to which `crop` and `stretch` resize an image of h x w pixels before they take its middle."""
        height, width = self.image_size
        tall, wide = round(height / self.crop_fraction), round(width / self.crop_fraction)
        if self.fit == "crop":  # the other side is rounded down, as torchvision, timm and transformers do
            return (tall, max(wide, tall * w // h)) if h * wide <= w * tall else (max(tall, wide * h // w), wide)
        return tall, wide

    def fit_canvas(self, image_CHW: Tensor) -> Tensor:
        """The field of view: with `pad`, the image on a canvas of the model's proportions; else the image.

        The canvas is at most `OVERSIZE` times the model's size: a long thin image must not fill the memory. Raises
        `ValueError` as `check_size` does.
        """
        height, width = self.image_size
        h, w = image_CHW.shape[-2:]
        self.check_size(h, w)
        if self.fit != "pad" or h * width == w * height:
            return image_CHW
        scale = min(1.0, OVERSIZE * min(height / h, width / w))
        image_CHW = self.resize(image_CHW, max(1, round(h * scale)), max(1, round(w * scale)))
        h, w = image_CHW.shape[-2:]
        return self.pad(image_CHW, max(h, round(w * height / width)), max(w, round(h * width / height)))

    def pad(self, image_CHW: Tensor, height: int, width: int) -> Tensor:
        """The image in the middle of a canvas in the mean colour."""
        h, w = image_CHW.shape[-2:]
        top, left = (height - h) // 2, (width - w) // 2
        canvas = torch.tensor(self.mean_color, dtype=torch.uint8)[:, None, None]
        canvas = canvas.expand(-1, height, width).clone()
        canvas[:, top : top + h, left : left + w] = image_CHW
        return canvas

    def fit_image(self, image_CHW: Tensor) -> Tensor:
        """uint8 (C, h, w) of any size -> uint8 (C, H, W) of the model's; raises `ValueError` as `check_size` does."""
        height, width = self.image_size
        h, w = image_CHW.shape[-2:]
        self.check_size(h, w)
        if self.fit == "pad":
            scale = min(height / h, width / w)
            inner = (min(height, max(1, round(h * scale))), min(width, max(1, round(w * scale))))
            return self.pad(self.resize(image_CHW, *inner), height, width)
        return self.center_crop(self.resize(image_CHW, *self.resized_size(h, w)), height, width)

    def center_crop(self, image_CHW: Tensor, height: int, width: int) -> Tensor:
        """The middle of an image; where half a pixel is left over, transformers crops one earlier than the others."""
        if self.engine != "transformers":
            return F.center_crop(image_CHW, [height, width])
        h, w = image_CHW.shape[-2:]
        return F.crop(image_CHW, (h - height) // 2, (w - width) // 2, height, width)

    def resize(self, image_CHW: Tensor, height: int, width: int) -> Tensor:
        """The image resized, with antialiasing."""
        if image_CHW.shape[-2:] == (height, width):
            return image_CHW
        mode = InterpolationMode(self.interpolation)
        if self.engine == "pillow":
            return F.pil_to_tensor(F.resize(F.to_pil_image(image_CHW), [height, width], interpolation=mode))
        return F.resize(image_CHW, [height, width], interpolation=mode, antialias=True)

    def normalize(self, pixels_BCHW: Tensor) -> Tensor:
        """uint8 pixels -> floats the model takes, on whatever device the pixels are."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=pixels_BCHW.device).view(shape)
        std = torch.tensor(self.std, device=pixels_BCHW.device).view(shape)
        return (pixels_BCHW / 255 - mean) / std

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Preprocess":
        """The preprocessing that `to_json` wrote; raises `UsageError` naming an unknown field."""
        known = {f.name for f in fields(cls)}
        for name in document:
            if name not in known:
                raise UsageError(f"the preprocessing has no field {name!r}", did_you_mean(name, known))
        if "image_size" not in document:
            raise UsageError("the preprocessing lacks image_size")
        return cls(**document)
