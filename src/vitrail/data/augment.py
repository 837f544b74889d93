"""Augmentation as data: the fields of `Augment`, and the transforms they stand for (torchvision v2)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from vitrail.data.preprocess import Preprocess
from vitrail.options import check_fields, option

Crop = Literal["none", "resized", "padded"]
Policy = Literal["none", "randaugment", "trivialaugment"]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What happens to a training image; fractions are probabilities unless said otherwise."""

    flip: float = option(0.5, "mirror left and right", least=0, most=1)
    crop: Crop = option("none", "random crop: of the image, or of its padded form")
    crop_area: float = option(0.8, "smallest part of the image that a resized crop keeps", above=0, most=1)
    crop_padding: float = option(0.125, "border of a padded crop, in image sides", least=0, most=0.5)
    policy: Policy = option("none", "random colour and shape changes")
    policy_changes: int = option(2, "changes per image in RandAugment", least=0)
    policy_strength: int = option(9, "their strength in RandAugment, 0 to 30", least=0, most=30)
    erasing: float = option(0.0, "blank a rectangle", least=0, most=1)
    mixup: float = option(0.0, "alpha of MixUp, 0 for none", least=0)
    cutmix: float = option(0.0, "alpha of CutMix, 0 for none", least=0)

    def __post_init__(self) -> None:
        check_fields(self)


def sample_transform(augment: Augment, preprocess: Preprocess) -> nn.Module:
    """One training image, uint8 of any size -> uint8 (C, H, W) of the model's size.

    All of it draws from torch's global generator, which the loader seeds for each sample.
    """
    height, width = preprocess.image_size
    mode = InterpolationMode(preprocess.interpolation)
    fill = preprocess.mean_colour
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
