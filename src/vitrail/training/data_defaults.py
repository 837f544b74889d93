"""What a recipe leaves open and the data decides: image size, patch, channels, classes, normalisation, epochs."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vitrail.data import Images, Preprocess, Splits
from vitrail.data.decode import ImageError
from vitrail.errors import UsageError, VitrailError
from vitrail.model import ViTConfig
from vitrail.model.config import to_pair
from vitrail.training.recipes import Recipe

T = TypeVar("T")
PATCH_BY_IMAGE_SIZE = ((16, 2), (48, 4), (128, 8))  # images up to this many pixels get this patch; larger ones get 16
IMAGE_SIZE_BY_SHORT_SIDE = (
    (96, 96),
    (48, 64),
    (0, 32),
)  # mixed images of at least this many pixels are seen at this size
TARGET_SAMPLES_SEEN = 450_000  # what a recipe without a number of epochs aims at, within these epochs
EPOCHS_RANGE = (10, 60)
BATCH_SIZE_RANGE = (
    16,
    256,
)  # a recipe without a batch takes the power of two nearest a twentieth of the images, within these
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def resolve_recipe(recipe: Recipe, splits: Splits) -> tuple[Recipe, ViTConfig, Preprocess]:
    """The recipe with sizes, epochs and batch, and the model and preprocessing that it means for these data."""
    sizes = sample_image_sizes(splits.train, skip_unreadable=recipe.skip_unreadable)
    model = dict(recipe.model)
    wanted = to_pair(model["image_size"]) if "image_size" in model else choose_image_size(sizes)
    patch = (
        model["patch"]
        if "patch" in model
        else next((p for limit, p in PATCH_BY_IMAGE_SIZE if min(wanted) <= limit), 16)
    )
    if "image_size" not in model:
        wanted = (-(-wanted[0] // patch) * patch, -(-wanted[1] // patch) * patch)
    model |= {"image_size": wanted[0] if wanted[0] == wanted[1] else wanted, "patch": patch}
    config = ViTConfig(**model, channels=splits.channels, classes=len(splits.classes))
    blank = Preprocess(
        image_size=to_pair(config.image_size),
        fit=recipe.fit or "pad",
        interpolation=recipe.interpolation or "bilinear",
        crop_fraction=recipe.crop_fraction or 1.0,
        mean=(0.5,) * splits.channels,
        std=(0.5,) * splits.channels,
        smallest=patch,
    )
    preprocess = with_normalization(
        blank, recipe.normalize or "data", splits.train, skip_unreadable=recipe.skip_unreadable
    )
    left_open = {k: model[k] for k in ("image_size", "patch")}
    return resolve_epochs_and_batch_size(recipe.with_changes(**left_open), splits), config, preprocess


def resolve_epochs_and_batch_size(recipe: Recipe, splits: Splits) -> Recipe:
    """The recipe with epochs and batch by the number of images, and no mirroring of what must not be mirrored."""
    if recipe.train_on == "features":
        return recipe
    n = len(splits.train)
    epochs = recipe.epochs or int(np.clip(round(TARGET_SAMPLES_SEEN / n), *EPOCHS_RANGE))
    batch = recipe.batch_size or int(np.clip(2 ** round(np.log2(n / 20)), *BATCH_SIZE_RANGE))
    flip = recipe.augment.flip if splits.flippable else 0.0
    return recipe.with_changes(epochs=epochs, batch_size=batch, flip=flip)


def read_sample(images: Images, read: Callable[[int], T], most: int, skip_unreadable: bool) -> list[T]:
    """What `read` gives for some of the images, spread evenly; raises `ImageError`, or leaves unreadable ones out."""
    found = []
    chosen = np.linspace(0, len(images) - 1, min(most, len(images))).astype(int).tolist()
    for i in chosen:
        try:
            found.append(read(i))
        except ImageError:
            if not skip_unreadable:
                raise
    if not found:
        raise VitrailError(f"not one of {len(chosen)} training images can be read", "vitrail check says why")
    return found


def sample_image_sizes(images: Images, most: int = 64, skip_unreadable: bool = False) -> list[tuple[int, int]]:
    """(height, width) of some of the images, spread evenly."""
    shapes = read_sample(images, lambda i: images[i].shape[-2:], most, skip_unreadable)
    return [(int(h), int(w)) for h, w in shapes]


def choose_image_size(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The images' own size where they agree on a small one, else a square that a laptop trains on."""
    if len(set(sizes)) == 1 and max(sizes[0]) <= 64:
        return sizes[0]
    typical = float(np.median([min(size) for size in sizes]))
    side = next(side for least, side in IMAGE_SIZE_BY_SHORT_SIDE if typical >= least)
    return side, side


def with_normalization(
    preprocess: Preprocess, by: str, images: Images, most: int = 2000, skip_unreadable: bool = False
) -> Preprocess:
    """The preprocessing with mean and deviation `by` a rule: half, imagenet, or data, measured on training images."""
    values = vars(preprocess)
    if by == "half":
        half = (0.5,) * preprocess.channels
        return Preprocess(**{**values, "mean": half, "std": half})
    if by == "imagenet":
        if preprocess.channels != 3:
            raise UsageError("normalize 'imagenet' is for colour images, these are grey", "use half or data")
        return Preprocess(**{**values, "mean": IMAGENET[0], "std": IMAGENET[1]})
    counts = read_sample(images, lambda i: pixel_histogram(images.fitted(preprocess, [i])[0]), most, skip_unreadable)
    mean_C, std_C = mean_and_std(torch.stack(counts).sum(0))
    mean = tuple(round(m, 4) for m in mean_C.tolist())
    std = tuple(max(round(s, 4), 0.01) for s in std_C.tolist())
    return Preprocess(**{**values, "mean": mean, "std": std})


def pixel_histogram(pixels_CHW: Tensor) -> Tensor:
    """How often each value from 0 to 255 occurs in each channel of an image, int64 (C, 256)."""
    return torch.stack([torch.bincount(channel, minlength=256) for channel in pixels_CHW.flatten(1)])


def mean_and_std(counts_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, on a scale from 0 to 1, of pixels that are counted by value."""
    value_V = torch.arange(256, dtype=torch.float64) / 255
    n = counts_CV[0].sum()
    mean_C = (counts_CV * value_V).sum(1) / n
    variance_C = (counts_CV * (value_V - mean_C[:, None]) ** 2).sum(1) / (n - 1)
    return mean_C, variance_C.sqrt()
