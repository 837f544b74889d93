"""Defaults that depend on the data: image size, patch, channels, classes, normalization, epochs, batch size, rate."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vitrail.console import log
from vitrail.data.bands import Bands, Channels, count_of
from vitrail.data.decode import ImageError
from vitrail.data.images import Images
from vitrail.data.loader import count_batches
from vitrail.data.preprocess import Preprocess
from vitrail.data.split import Splits
from vitrail.errors import UsageError, VitrailError
from vitrail.model.config import ViTConfig, to_pair
from vitrail.tasks import REGRESSION, TASKS
from vitrail.training.recipe import Recipe
from vitrail.weights.builders import ModuleConfig

T = TypeVar("T")
PATCH_BY_IMAGE_SIZE = ((16, 2), (48, 4), (128, 8))  # (largest image size, patch)
LARGEST_PATCH = 16
MAX_NATURAL_SIZE = 64  # images that all have one size, up to this, are not resized
IMAGE_SIZE_BY_SHORT_SIDE = ((96, 96), (48, 64), (0, 32))  # (smallest median short side, image size)
TARGET_SAMPLES_SEEN = 450_000  # epochs x training images
EPOCHS_RANGE = (10, 60)
STEPS_PER_EPOCH = 20  # the batch size is the power of two that comes nearest to this
BATCH_SIZE_RANGE = (16, 256)
TRANSFER_BATCH_SIZE_RANGE = (16, 64)  # for pretrained weights, which are often those of large models
TRANSFER_LR_OF_100_STEPS = 4.2e-5
MAX_TRANSFER_LR = 3e-4
SMALLEST_STD = 1e-6  # of values that are not 8-bit
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resolve_model(recipe: Recipe, splits: Splits) -> tuple[ViTConfig, Preprocess]:
    """Returns the model and preprocessing for these data, without their normalization."""
    source_sizes = sample_image_sizes(splits.train, skip_unreadable=recipe.skip_unreadable)
    model: dict[str, Any] = {**recipe.model}
    image_size = to_pair(model["image_size"]) if "image_size" in model else choose_image_size(source_sizes)
    patch = model["patch"] if "patch" in model else choose_patch(min(image_size))
    if "image_size" not in model:
        image_size = (-(-image_size[0] // patch) * patch, -(-image_size[1] // patch) * patch)
    sizes = {"image_size": image_size[0] if image_size[0] == image_size[1] else image_size, "patch": patch}
    config = ViTConfig(**{**model, **sizes}, channels=count_of(splits.channels), classes=len(splits.classes))
    return config, make_preprocess(recipe, to_pair(config.image_size), splits.channels, min_size=patch)


def resolve_module(recipe: Recipe, splits: Splits) -> tuple[ModuleConfig, Preprocess]:
    """Returns the config of a model that is not a ViT, and the preprocessing without its normalization."""
    if "image_size" in recipe.model:
        size = to_pair(recipe.model["image_size"])
    else:
        size = choose_image_size(sample_image_sizes(splits.train, skip_unreadable=recipe.skip_unreadable))
    config = ModuleConfig(
        architecture=recipe.architecture,
        image_size=size,
        channels=count_of(splits.channels),
        classes=len(splits.classes),
    )
    return config, make_preprocess(recipe, size, splits.channels)


def make_preprocess(recipe: Recipe, image_size: tuple[int, int], channels: Channels, min_size: int = 1) -> Preprocess:
    """Returns the preprocessing of a recipe, without its normalization."""
    return Preprocess(
        image_size=image_size,
        fit=recipe.fit or "pad",
        interpolation=recipe.interpolation or "bilinear",
        crop_fraction=recipe.crop_fraction or 1.0,
        mean=(0.5,) * count_of(channels),
        std=(0.5,) * count_of(channels),
        values=channels.values if isinstance(channels, Bands) else "uint8",
        min_size=min_size,
    )


def complete_recipe(
    recipe: Recipe,
    config: ViTConfig | ModuleConfig,
    preprocess: Preprocess,
    splits: Splits,
    *,
    transfers: bool,
    unlabeled: int = 0,
) -> tuple[Recipe, Preprocess]:
    """Returns the recipe with sizes, epochs, batch size and learning rate, and the preprocessing with mean and std.

    With `transfers`, the weights and the preprocessing are pretrained. `unlabeled` is the number of training images
    besides those of the splits.
    """
    recipe = recipe.with_changes(image_size=config.image_size)
    if isinstance(config, ViTConfig):
        recipe = recipe.with_changes(patch=config.patch)
    recipe = resolve_schedule(recipe, splits, TRANSFER_BATCH_SIZE_RANGE if transfers else BATCH_SIZE_RANGE, unlabeled)
    if preprocess.source_channels != splits.channels:  # mean and std of the weights mean nothing for these images
        theirs = make_preprocess(recipe, preprocess.image_size, splits.channels)
        preprocess = replace(preprocess, mean=theirs.mean, std=theirs.std, values=theirs.values)
        transfers = False
    if by := recipe.normalize or (None if transfers else "data"):
        preprocess = with_normalization(preprocess, by, splits.train, skip_unreadable=recipe.skip_unreadable)
    if recipe.shown_channels is not None:
        preprocess = preprocess.with_shown(recipe.shown_channels)
    return recipe, preprocess


def resolve_schedule(
    recipe: Recipe, splits: Splits, batch_size_range: tuple[int, int] = BATCH_SIZE_RANGE, unlabeled: int = 0
) -> Recipe:
    """Returns the recipe with epochs, batch size, learning rate and loss.

    Flips are turned off if the classes must not be mirrored, and what is for classes if the images have numbers.
    """
    if recipe.train_on == "features":
        return recipe
    n = len(splits.train) + unlabeled
    epochs = recipe.epochs or int(np.clip(round(TARGET_SAMPLES_SEEN / n), *EPOCHS_RANGE))
    batch_size = recipe.batch_size or int(np.clip(2 ** round(np.log2(n / STEPS_PER_EPOCH)), *batch_size_range))
    lr = recipe.lr or choose_transfer_lr(epochs * count_batches(n, batch_size))
    flip = recipe.augment.flip if splits.can_flip else 0.0
    loss = recipe.loss or TASKS[splits.train.task].default_loss
    recipe = recipe.with_changes(epochs=epochs, batch_size=batch_size, lr=lr, flip=flip, loss=loss)
    return without_class_settings(recipe) if splits.train.task == REGRESSION else recipe


def without_class_settings(recipe: Recipe) -> Recipe:
    """Returns a recipe for numbers: settings of recipes that need classes are turned off, and a line says so."""
    for name, value in (("cutmix", recipe.augment.cutmix), ("label_smoothing", recipe.label_smoothing)):
        if value:
            log(f"{name} is off: {TASKS[REGRESSION].refusals[name]}")
    if recipe.augment.flip:
        log(f"images are mirrored (flip {recipe.augment.flip:g}); if that changes their number, use --flip 0")
    return recipe.with_changes(cutmix=0.0, label_smoothing=0.0)


def choose_transfer_lr(steps: int) -> float:
    """Returns a learning rate for pretrained weights: it grows with the root of the number of steps.

    AdamW's first steps change every weight by about the learning rate, however small its gradient. With few steps there
    is no time to repair what large ones destroy.
    """
    return float(f"{min(MAX_TRANSFER_LR, TRANSFER_LR_OF_100_STEPS * math.sqrt(steps / 100)):.2g}")


def choose_image_size(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Returns the images' own size if all have the same small one, else a square that a laptop can train on."""
    if len(set(sizes)) == 1 and max(sizes[0]) <= MAX_NATURAL_SIZE:
        return sizes[0]
    short_side = float(np.median([min(size) for size in sizes]))
    size = next(size for min_short_side, size in IMAGE_SIZE_BY_SHORT_SIDE if short_side >= min_short_side)
    return size, size


def choose_patch(image_size: int) -> int:
    """Returns the patch size for the shorter side of an image."""
    return next((patch for limit, patch in PATCH_BY_IMAGE_SIZE if image_size <= limit), LARGEST_PATCH)


def read_sample(images: Images, read: Callable[[int], T], max_images: int, skip_unreadable: bool) -> list[T]:
    """Calls `read` for up to `max_images` evenly spaced indices and returns the results.

    Raises `ImageError`, or with `skip_unreadable` leaves out the unreadable images; `VitrailError` if none can be read.
    """
    results = []
    indices = np.linspace(0, len(images) - 1, min(max_images, len(images))).astype(int).tolist()
    for i in indices:
        try:
            results.append(read(i))
        except ImageError:
            if not skip_unreadable:
                raise
    if not results:
        raise VitrailError(f"none of {len(indices)} training images can be read", "vitrail check tells why")
    return results


def sample_image_sizes(images: Images, max_images: int = 64, skip_unreadable: bool = False) -> list[tuple[int, int]]:
    """Returns (height, width) of a sample of the images."""
    shapes = read_sample(images, lambda i: images[i].shape[-2:], max_images, skip_unreadable)
    return [(int(h), int(w)) for h, w in shapes]


def with_normalization(
    preprocess: Preprocess, by: str, images: Images, max_images: int = 2000, skip_unreadable: bool = False
) -> Preprocess:
    """Returns the preprocessing with mean and std `half`, those of `imagenet`, or those of the training images."""
    values = vars(preprocess)
    if by != "data" and preprocess.values != "uint8":
        sentence = f"normalize {by!r} is for 8-bit images, and these have values of {preprocess.values}"
        raise UsageError(sentence, "use data, which measures each channel")
    if by == "half":
        half = (0.5,) * preprocess.channels
        return Preprocess(**{**values, "mean": half, "std": half})
    if by == "imagenet":
        if preprocess.channels != 3:
            kind = "are gray" if preprocess.channels == 1 else f"have {preprocess.channels} channels"
            raise UsageError(f"normalize 'imagenet' is for color images, and these {kind}", "use half or data")
        return Preprocess(**{**values, "mean": IMAGENET_MEAN, "std": IMAGENET_STD})
    is_8_bit = preprocess.values == "uint8"
    measure: Callable[[list[Any]], tuple[tuple[float, ...], tuple[float, ...]]]
    measure = measure_pixels if is_8_bit else measure_values
    summarize: Callable[[Tensor], Any] = pixel_histogram if is_8_bit else sum_values
    mean, std = measure(summarize_images(images, preprocess, summarize, max_images, skip_unreadable))
    return Preprocess(**{**values, "mean": mean, "std": std})


def summarize_images(
    images: Images, preprocess: Preprocess, summarize: Callable[[Tensor], T], max_images: int, skip_unreadable: bool
) -> list[T]:
    """Calls `summarize` for each image of a sample, of the model's size, and returns the results."""
    return read_sample(images, lambda i: summarize(images.load_batch(preprocess, [i])[0]), max_images, skip_unreadable)


def measure_pixels(histograms: list[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std of each channel, of pixels from 0 to 1."""
    mean_C, std_C = mean_and_std(torch.stack(histograms).sum(0))
    return tuple(round(m, 4) for m in mean_C.tolist()), tuple(max(round(s, 4), 0.01) for s in std_C.tolist())


def measure_values(sums: list[tuple[int, Tensor, Tensor]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std of each channel in the units of the files; a channel of one value gets the std 1."""
    n, mean_C, square_C = combine_moments(sums)
    std_C = (square_C / max(n - 1, 1)).sqrt()
    mean = tuple(float(f"{m:.6g}") for m in mean_C.tolist())
    return mean, tuple(float(f"{s:.6g}") if s > SMALLEST_STD else 1.0 for s in std_C.tolist())


def sum_values(pixels_CHW: Tensor) -> tuple[int, Tensor, Tensor]:
    """Returns the number of pixels, the mean of each channel and the sum of squares around it, in float64."""
    flat_CP = pixels_CHW.flatten(1).double()
    mean_C = flat_CP.mean(1)
    return flat_CP.shape[1], mean_C, ((flat_CP - mean_C[:, None]) ** 2).sum(1)


def combine_moments(parts: list[tuple[int, Tensor, Tensor]]) -> tuple[int, Tensor, Tensor]:
    """Combines what `sum_values` returns of several images (Chan, Golub & LeVeque 1983)."""
    n, mean_C, square_C = parts[0]
    for other_n, other_mean_C, other_square_C in parts[1:]:
        total, shift_C = n + other_n, other_mean_C - mean_C
        mean_C = mean_C + shift_C * (other_n / total)
        square_C = square_C + other_square_C + shift_C**2 * (n * other_n / total)
        n = total
    return n, mean_C, square_C


def pixel_histogram(pixels_CHW: Tensor) -> Tensor:
    """Counts each value from 0 to 255 in each channel of an image: int64 (C, 256)."""
    return torch.stack([torch.bincount(channel, minlength=256) for channel in pixels_CHW.flatten(1)])


def mean_and_std(histogram_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of each channel, of pixel values scaled to 0 to 1."""
    value_V = torch.arange(256, dtype=torch.float64) / 255
    n = histogram_CV[0].sum()
    mean_C = (histogram_CV * value_V).sum(1) / n
    variance_C = (histogram_CV * (value_V - mean_C[:, None]) ** 2).sum(1) / (n - 1)
    return mean_C, variance_C.sqrt()
