"""Pixels -> what the model sees: one preprocessing, stored with the weights, used by every verb."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode

from vitrail.errors import UsageError, did_you_mean

Fit = Literal["pad", "crop", "squash"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes (C, H, W) floats.

    `fit` says what becomes of another shape than the model's: `pad` keeps everything and the proportions, `crop`
    takes the middle (`crop_fraction` of it: 224 of 256 is 0.875), `squash` keeps everything and bends the
    proportions. Images with a side below `smallest` pixels are refused.
    """

    image_size: tuple[int, int]
    fit: Fit = "pad"
    crop_fraction: float = 1.0
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    smallest: int = 1

    def __post_init__(self) -> None:
        for name in ("image_size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, allowed in (("fit", Fit), ("interpolation", Interpolation)):
            if getattr(self, name) not in get_args(allowed):
                raise UsageError(
                    f"{name} {getattr(self, name)!r} is not known", did_you_mean(getattr(self, name), get_args(allowed))
                )
        if len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
            raise UsageError(f"mean {self.mean} and std {self.std} do not make a normalisation")
        if not 0 < self.crop_fraction <= 1:
            raise UsageError(f"crop_fraction is {self.crop_fraction}; it must be above 0 and at most 1")

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return len(self.mean)

    def frame(self, image_CHW: Tensor) -> Tensor:
        """The field of view: with `pad`, the image on a canvas of the model's proportions; else the image.

        Raises `ValueError` if the image is too small.
        """
        height, width = self.image_size
        h, w = image_CHW.shape[-2:]
        if min(h, w) < self.smallest:
            raise ValueError(f"{w}x{h} pixels are fewer than a patch of {self.smallest}")
        if self.fit != "pad" or h * width == w * height:
            return image_CHW
        full_h, full_w = max(h, round(w * height / width)), max(w, round(h * width / height))
        top, left = (full_h - h) // 2, (full_w - w) // 2
        canvas = torch.tensor([round(255 * m) for m in self.mean], dtype=torch.uint8)[:, None, None]
        canvas = canvas.expand(-1, full_h, full_w).clone()
        canvas[:, top : top + h, left : left + w] = image_CHW
        return canvas

    def fitted(self, image_CHW: Tensor) -> Tensor:
        """uint8 (C, h, w) of any size -> uint8 (C, H, W) of the model's size; raises `ValueError` if too small."""
        height, width = self.image_size
        image_CHW = self.frame(image_CHW)
        if self.fit == "crop":
            h, w = image_CHW.shape[-2:]
            target_h, target_w = height / self.crop_fraction, width / self.crop_fraction
            scale = max(target_h / h, target_w / w)
            image_CHW = self.resize(image_CHW, max(height, round(h * scale)), max(width, round(w * scale)))
            return F.center_crop(image_CHW, [height, width])
        return self.resize(image_CHW, height, width)

    def resize(self, image_CHW: Tensor, height: int, width: int) -> Tensor:
        """The image resized, with antialiasing."""
        if image_CHW.shape[-2:] == (height, width):
            return image_CHW
        mode = InterpolationMode(self.interpolation)
        return F.resize(image_CHW, [height, width], interpolation=mode, antialias=True)

    def normalise(self, pixels_BCHW: Tensor) -> Tensor:
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
        return cls(**document)
