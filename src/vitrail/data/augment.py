"""Augmentation as data: the fields of `Augment`, and the transforms they stand for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from vitrail.data.preprocess import Preprocess
from vitrail.options import check_fields, option

Crop = Literal["none", "resized", "padded"]
Policy = Literal["none", "randaugment", "trivialaugment"]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What happens to a training image; fractions are probabilities unless said otherwise."""

    flip: float = option(0.5, "mirror left and right", ge=0, le=1)
    crop: Crop = option("none", "random crop: of the image, or of its padded form")
    crop_scale: float = option(0.8, "smallest part of the image that a resized crop keeps", gt=0, le=1)
    crop_padding: float = option(0.125, "border of a padded crop, in image sides", ge=0, le=0.5)
    policy: Policy = option("none", "random colour and shape changes")
    policy_ops: int = option(2, "changes per image in RandAugment", ge=0)
    policy_magnitude: int = option(9, "their strength in RandAugment, 0 to 30", ge=0, le=30)
    random_erasing: float = option(0.0, "blank a rectangle", ge=0, le=1)
    mixup: float = option(0.0, "alpha of MixUp, 0 for none", ge=0)
    cutmix: float = option(0.0, "alpha of CutMix, 0 for none", ge=0)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def is_mixing(self) -> bool:
        """Whether images of a batch are mixed with one another."""
        return bool(self.mixup or self.cutmix)


@dataclass(frozen=True)
class Augmentation:
    """What `Augment` stands for: first changes of each image by itself, then those that a whole batch takes at once."""

    augment_image: Callable[[Tensor], Tensor]  # uint8 of any size -> uint8 (C, H, W)
    is_random: bool = False  # whether `one` draws, from torch's global generator
    identity_shape: tuple[int, ...] | None = None  # the shape of images that `one` gives back as they are
    max_shift: int = 0  # an image is moved by up to so many pixels, its border mirrored
    flip: float = 0.0  # probability of being mirrored left and right

    def augment_batch(self, pixels_BCHW: Tensor, draws_B3: np.ndarray) -> Tensor:
        """The batch moved and mirrored; `draws_B3` are numbers from 0 to 1, three for each image."""
        numbers_B3 = torch.from_numpy(draws_B3)
        if self.max_shift:
            pixels_BCHW = shift_images(
                pixels_BCHW, (numbers_B3[:, :2] * (2 * self.max_shift + 1)).long(), self.max_shift
            )
        if self.flip:
            mirrored_B = numbers_B3[:, 2] < self.flip
            pixels_BCHW = torch.where(mirrored_B[:, None, None, None], pixels_BCHW.flip(-1), pixels_BCHW)
        return pixels_BCHW


def shift_images(pixels_BCHW: Tensor, corner_B2: Tensor, border: int) -> Tensor:
    """Crops of the images with mirrored borders, each at its own corner, 0 to 2 * border down and to the right."""
    h, w = pixels_BCHW.shape[-2:]
    padded = F.pad(pixels_BCHW.float(), (border,) * 4, mode="reflect").to(pixels_BCHW.dtype)  # no kernel for bytes
    crops = padded.unfold(2, h, 1).unfold(3, w, 1)  # (B, C, places down, places right, H, W), nothing copied yet
    return crops[torch.arange(len(crops)), :, corner_B2[:, 0], corner_B2[:, 1]]


def build_augmentation(augment: Augment, preprocess: Preprocess) -> Augmentation:
    """The transforms of training images, for images of the model's size."""
    height, width = preprocess.image_size
    mode = InterpolationMode(preprocess.interpolation)
    fill = preprocess.mean_color
    steps: list[nn.Module] = []
    if augment.crop == "resized":
        scale = (augment.crop_scale, 1.0)
        steps += [v2.Lambda(preprocess.fit_canvas)]
        steps += [v2.RandomResizedCrop((height, width), scale=scale, interpolation=mode, antialias=True)]
    turned = InterpolationMode.BILINEAR  # torchvision cannot rotate or shear a tensor with bicubic
    if augment.policy == "randaugment":
        steps += [v2.RandAugment(augment.policy_ops, augment.policy_magnitude, interpolation=turned, fill=fill)]
    if augment.policy == "trivialaugment":
        steps += [v2.TrivialAugmentWide(interpolation=turned, fill=fill)]
    if augment.random_erasing:
        steps += [v2.RandomErasing(augment.random_erasing, value=fill)]
    border = round(augment.crop_padding * min(height, width)) if augment.crop == "padded" else 0
    if not steps:
        return replace(build_resizing(preprocess), max_shift=border, flip=augment.flip)
    if augment.crop != "resized":
        steps = [v2.Lambda(preprocess.fit_image), *steps]
    return Augmentation(v2.Compose(steps), is_random=True, max_shift=border, flip=augment.flip)


def build_resizing(preprocess: Preprocess) -> Augmentation:
    """No augmentation: images are only brought to the model's size."""
    whole = preprocess.crop_fraction == 1.0 and preprocess.min_size <= min(preprocess.image_size)
    return Augmentation(
        preprocess.fit_image, identity_shape=(preprocess.channels, *preprocess.image_size) if whole else None
    )


def mix_batch(
    augment: Augment, images_BCHW: Tensor, labels_B: Tensor, classes: int, extra: int = 0
) -> tuple[Tensor, Tensor]:
    """MixUp or CutMix of a normalised batch, with soft targets (B, Y); unchanged if the recipe has neither.

    Each image is mixed with the one before it, the first with the last. The first `spare` images are there for the next
    one's sake alone, and left out of what comes back.
    """
    choices: list[nn.Module] = []
    if augment.mixup:
        choices += [v2.MixUp(alpha=augment.mixup, num_classes=classes)]
    if augment.cutmix:
        choices += [v2.CutMix(alpha=augment.cutmix, num_classes=classes)]
    if not choices:
        return images_BCHW, labels_B
    mixed: tuple[Tensor, Tensor] = v2.RandomChoice(choices)(images_BCHW, labels_B)
    return (mixed[0][extra:], mixed[1][extra:]) if extra else mixed
