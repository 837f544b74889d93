"""Augmentation: `Augment` is the configuration; `build_augmentation` makes the transforms.

To add one: a field of `Augment`, and a line in `build_augmentation` (for single images), `augment_batch` (for batches
of pixels) or `mix_batch` (for normalized batches with labels).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from vitrail.errors import UsageError
from vitrail.options import check_fields, option
from vitrail.parts import add_callable, make_part

# The command line reads `Augment` before anything else runs, so functions import torch when they are called.
if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torchvision.transforms import v2

    from vitrail.data.preprocess import Preprocess

Crop = Literal["none", "resized", "padded"]
Policy = Literal["none", "randaugment", "trivialaugment"]
POLICIES: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {}  # of plugins: arguments -> transform of an image


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How training images are augmented."""

    flip: float = option(0.5, "probability of a horizontal flip", ge=0, le=1)
    crop: Crop = option("none", "random crop; resized: a part of the image; padded: a window of the padded image")
    crop_scale: float = option(0.8, "minimum fraction of the area that a resized crop keeps", gt=0, le=1)
    crop_padding: float = option(0.125, "padding of a padded crop, as a fraction of the image size", ge=0, le=0.5)
    policy: Policy | str = option(
        "none", "automatic augmentation: random changes of color and shape", part="augmentation"
    )
    policy_ops: int = option(2, "operations per image in RandAugment", ge=0)
    policy_magnitude: int = option(9, "magnitude of RandAugment's operations, 0 to 30", ge=0, le=30)
    random_erasing: float = option(0.0, "probability of erasing a random rectangle", ge=0, le=1)
    mixup: float = option(0.0, "alpha of MixUp; 0: off", ge=0)
    cutmix: float = option(0.0, "alpha of CutMix; 0: off", ge=0)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def is_mixing(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return bool(self.mixup or self.cutmix)


def name_augmentation(augment: Callable[..., object]) -> str:
    """Lets recipes of this process name a callable by its qualified name, which it returns.

    It is called with each image (C, H, W) of the model's size, uint8 or the values of bands, and returns one of the
    same shape and type.
    """
    if not callable(augment) or isinstance(augment, type):
        kind = f"the class {augment.__name__}" if isinstance(augment, type) else f"a {type(augment).__name__}"
        raise UsageError(f"augment is {kind}", "give a name of a policy or a function of an image, uint8 (C, H, W)")
    name = add_callable("augmentation", augment)
    POLICIES[name] = lambda: augment  # type: ignore[assignment,return-value]
    return name


@dataclass(frozen=True)
class Augmentation:
    """The transforms of training images: `augment_image` for each image, then `augment_batch` for the batch."""

    augment_image: Callable[[Tensor], Tensor]  # (C, h, w) of any size -> (C, H, W)
    is_random: bool = False  # whether `augment_image` draws from torch's global generator
    identity_shape: tuple[int, ...] | None = None  # `augment_image` returns images of this shape unchanged
    max_shift: int = 0  # images are shifted by up to this many pixels, with reflected borders
    flip: float = 0.0

    def augment_batch(self, pixels_BCHW: Tensor, indices: np.ndarray, seed: int, epoch: int) -> Tensor:
        """Shifts and flips each image at random; `indices` of the images, `seed` and `epoch` decide how."""
        if not len(indices) or not (self.max_shift or self.flip):
            return pixels_BCHW
        import torch

        from vitrail.data.randomness import keyed_uniform

        # "together" is an old name of this function: another key would change the batches of existing recipes
        random_B3 = torch.from_numpy(keyed_uniform(indices, 3, "together", seed, epoch))
        if self.max_shift:
            offset_B2 = (random_B3[:, :2] * (2 * self.max_shift + 1)).long()
            pixels_BCHW = shift_images(pixels_BCHW, offset_B2, self.max_shift)
        if self.flip:
            is_flipped_B = random_B3[:, 2] < self.flip
            pixels_BCHW = torch.where(is_flipped_B[:, None, None, None], pixels_BCHW.flip(-1), pixels_BCHW)
        return pixels_BCHW


def shift_images(pixels_BCHW: Tensor, offset_B2: Tensor, border: int) -> Tensor:
    """Crops each image from its padded form (reflected borders) at its own offset, 0 to 2 * border down and right."""
    import torch
    import torch.nn.functional as F

    h, w = pixels_BCHW.shape[-2:]
    padded = F.pad(pixels_BCHW.float(), (border,) * 4, mode="reflect").to(pixels_BCHW.dtype)  # no uint8 kernel exists
    crops = padded.unfold(2, h, 1).unfold(3, w, 1)  # (B, C, offsets down, offsets right, H, W), a view
    return crops[torch.arange(len(crops)), :, offset_B2[:, 0], offset_B2[:, 1]]


def build_augmentation(augment: Augment, preprocess: Preprocess) -> Augmentation:
    """Returns the transforms of training images, for images of the model's size."""
    from torchvision.transforms import InterpolationMode, v2

    height, width = preprocess.image_size
    fill = preprocess.mean_pixel
    randaugment, trivialaugment = find_policies(preprocess)
    transforms: list[Callable[..., Any]] = []
    if augment.crop == "resized":
        scale, mode = (augment.crop_scale, 1.0), InterpolationMode(preprocess.interpolation)
        transforms += [v2.Lambda(preprocess.fit_canvas)]
        transforms += [v2.RandomResizedCrop((height, width), scale=scale, interpolation=mode, antialias=True)]
    bilinear = InterpolationMode.BILINEAR  # torchvision cannot rotate or shear a tensor with bicubic
    if augment.policy == "randaugment":
        ops, magnitude = augment.policy_ops, augment.policy_magnitude
        transforms += [randaugment(ops, magnitude, interpolation=bilinear, fill=fill)]
    elif augment.policy == "trivialaugment":
        transforms += [trivialaugment(interpolation=bilinear, fill=fill)]
    elif augment.policy != "none":
        transforms += [make_part(POLICIES, augment.policy)]
    if augment.random_erasing:
        transforms += [v2.RandomErasing(augment.random_erasing, value=fill)]
    max_shift = round(augment.crop_padding * min(height, width)) if augment.crop == "padded" else 0
    if not transforms:
        return replace(build_resizing(preprocess), max_shift=max_shift, flip=augment.flip)
    if augment.crop != "resized":
        transforms = [v2.Lambda(preprocess.fit_image), *transforms]
    return Augmentation(v2.Compose(transforms), is_random=True, max_shift=max_shift, flip=augment.flip)


def find_policies(preprocess: Preprocess) -> tuple[type[v2.RandAugment], type[v2.TrivialAugmentWide]]:
    """Returns the automatic augmentations of torchvision; those of bands have no color operations."""
    from torchvision.transforms import v2

    if not preprocess.has_bands:
        return v2.RandAugment, v2.TrivialAugmentWide
    from vitrail.data.shape_policies import ShapeRandAugment, ShapeTrivialAugment

    return ShapeRandAugment, ShapeTrivialAugment


def describe_restriction(augment: Augment, preprocess: Preprocess) -> str | None:
    """Returns a sentence on what of the augmentation is left out for these images; None if nothing is."""
    if not preprocess.has_bands or augment.policy not in ("randaugment", "trivialaugment"):
        return None
    reason = "its color operations are for 8-bit gray and color images"
    return f"the policy {augment.policy} only shifts, shears and turns these images: {reason}"


def build_resizing(preprocess: Preprocess) -> Augmentation:
    """Returns the transform without augmentation: images are only brought to the model's size."""
    is_cut = preprocess.crop_fraction != 1.0 or any(preprocess.trim)
    keeps_size = not is_cut and preprocess.min_size <= min(preprocess.image_size)
    model_shape = (preprocess.channels, *preprocess.image_size)
    return Augmentation(preprocess.fit_image, identity_shape=model_shape if keeps_size else None)


def mix_batch(
    augment: Augment, images_BCHW: Tensor, labels_B: Tensor, classes: int, overlap: int = 0
) -> tuple[Tensor, Tensor]:
    """Applies MixUp or CutMix to a normalized batch; returns it with soft targets (B, Y), unchanged if both are off.

    `labels_B` are class indices, (B, Y) with 1 for each label of an image, or numbers (B, Y).
    Each image is mixed with the one before it, the first with the last. The first `overlap` images are only partners
    of the next one: they are dropped from the result.
    """
    from torchvision.transforms import v2

    transforms: list[nn.Module] = []
    if augment.mixup:
        transforms += [v2.MixUp(alpha=augment.mixup, num_classes=classes)]
    if augment.cutmix:
        transforms += [v2.CutMix(alpha=augment.cutmix, num_classes=classes)]
    if not transforms:
        return images_BCHW, labels_B.float() if labels_B.ndim == 2 else labels_B
    mixed: tuple[Tensor, Tensor] = v2.RandomChoice(transforms)(images_BCHW, labels_B)
    return (mixed[0][overlap:], mixed[1][overlap:]) if overlap else mixed
