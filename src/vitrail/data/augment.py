"""Augmentation as data: the fields of `Augment`, and the transforms they stand for (torchvision v2)."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, did_you_mean

Crop = Literal["none", "resized", "padded"]
Policy = Literal["none", "randaugment", "trivialaugment"]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What happens to a training image; fractions are probabilities unless said otherwise."""

    flip: float = field(default=0.5, metadata={"help": "mirror left and right"})
    crop: Crop = field(default="none", metadata={"help": "random crop: of the image, or of its padded form"})
    crop_area: float = field(default=0.8, metadata={"help": "smallest part of the image that a resized crop keeps"})
    crop_padding: float = field(default=0.125, metadata={"help": "border of a padded crop, in image sides"})
    policy: Policy = field(default="none", metadata={"help": "random colour and shape changes"})
    policy_changes: int = field(default=2, metadata={"help": "changes per image in RandAugment"})
    policy_strength: int = field(default=9, metadata={"help": "their strength in RandAugment, 0 to 30"})
    erasing: float = field(default=0.0, metadata={"help": "blank a rectangle"})
    mixup: float = field(default=0.0, metadata={"help": "alpha of MixUp, 0 for none"})
    cutmix: float = field(default=0.0, metadata={"help": "alpha of CutMix, 0 for none"})

    def __post_init__(self) -> None:
        for name, allowed in (("crop", Crop), ("policy", Policy)):
            if getattr(self, name) not in get_args(allowed):
                raise UsageError(
                    f"{name} {getattr(self, name)!r} is not known", did_you_mean(getattr(self, name), get_args(allowed))
                )
        for name in ("flip", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        if not 0 < self.crop_area <= 1:
            raise UsageError(f"crop_area is {self.crop_area}; it must be above 0 and at most 1")
        if not 0 <= self.crop_padding <= 0.5:  # the border mirrors the image, so it must be narrower
            raise UsageError(f"crop_padding is {self.crop_padding}; it must be between 0 and 0.5")
        for name in ("mixup", "cutmix", "policy_changes"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it cannot be negative")
        if not 0 <= self.policy_strength <= 30:
            raise UsageError(f"policy_strength is {self.policy_strength}; it must be between 0 and 30")


def sample_transform(augment: Augment, preprocess: Preprocess) -> nn.Module:
    """One training image, uint8 of any size -> uint8 (C, H, W) of the model's size.

    All of it draws from torch's global generator, which the loader seeds for each sample.
    """
    height, width = preprocess.image_size
    mode = InterpolationMode(preprocess.interpolation)
    fill = [round(255 * m) for m in preprocess.mean]
    steps: list[nn.Module] = []
    if augment.crop == "resized":
        scale = (augment.crop_area, 1.0)
        steps += [v2.Lambda(preprocess.frame)]
        steps += [v2.RandomResizedCrop((height, width), scale=scale, interpolation=mode, antialias=True)]
    else:
        steps += [v2.Lambda(preprocess.fitted)]
    if augment.crop == "padded" and (border := round(augment.crop_padding * min(height, width))):
        steps += [v2.RandomCrop((height, width), padding=border, padding_mode="reflect")]
    if augment.flip:
        steps += [v2.RandomHorizontalFlip(augment.flip)]
    turned = InterpolationMode.BILINEAR  # torchvision cannot rotate or shear a tensor with bicubic
    if augment.policy == "randaugment":
        steps += [v2.RandAugment(augment.policy_changes, augment.policy_strength, interpolation=turned, fill=fill)]
    if augment.policy == "trivialaugment":
        steps += [v2.TrivialAugmentWide(interpolation=turned, fill=fill)]
    if augment.erasing:
        steps += [v2.RandomErasing(augment.erasing, value=fill)]
    return v2.Compose(steps)


def mix(augment: Augment, images_BCHW: Tensor, labels_B: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """MixUp or CutMix of a normalised batch, with soft targets (B, Y); unchanged if the recipe has neither."""
    choices: list[nn.Module] = []
    if augment.mixup:
        choices += [v2.MixUp(alpha=augment.mixup, num_classes=classes)]
    if augment.cutmix:
        choices += [v2.CutMix(alpha=augment.cutmix, num_classes=classes)]
    if not choices:
        return images_BCHW, labels_B
    mixed: tuple[Tensor, Tensor] = v2.RandomChoice(choices)(images_BCHW, labels_B)
    return mixed
