"""Accuracy on corrupted images, after Hendrycks & Dietterich 2019 (arXiv 1903.12261).

Six of their fifteen corruptions with three strengths, applied to images of the model's size. The strengths are our own,
relative to the image size where that matters: results compare models on the same images, not with ImageNet-C.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.batching import BatchHalver
from vitrail.classifier import Classifier
from vitrail.data.geometry import resize
from vitrail.data.randomness import derive_seed
from vitrail.intervals import wilson_interval


@dataclass(frozen=True)
class Corruption:
    """A function of uint8 pixels (B, C, H, W), a strength and a generator; and three strengths, mild to severe."""

    description: str
    apply: Callable[[Tensor, float, torch.Generator], Tensor]
    strengths: tuple[float, float, float]


def add_noise(pixels: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Adds Gaussian noise; `std` is a fraction of the full range."""
    return _to_uint8(pixels + 255 * std * torch.randn(pixels.shape, generator=generator))


def blur(pixels: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Blurs with a Gaussian whose standard deviation is this fraction of the shorter edge."""
    from torchvision.transforms.v2.functional import gaussian_blur  # it imports torch's compiler

    sigma = fraction * min(pixels.shape[-2:])
    width = min(2 * int(np.ceil(3 * sigma)) + 1, 2 * (min(pixels.shape[-2:]) // 2) - 1)
    return gaussian_blur(pixels, [max(width, 1)] * 2, [sigma, sigma])


def brighten(pixels: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Adds a fraction of the full range to all channels."""
    return _to_uint8(pixels + 255 * amount)


def lower_contrast(pixels: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """Multiplies the distance from the mean of the image by `factor`."""
    mean = pixels.float().mean(dim=(1, 2, 3), keepdim=True)
    return _to_uint8((pixels - mean) * factor + mean)


def pixelate(pixels: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """Shrinks the image by `factor` and enlarges it again with nearest-neighbor interpolation."""
    h, w = pixels.shape[-2:]
    small = resize(pixels, max(1, round(h * factor)), max(1, round(w * factor)))
    return resize(small, h, w, "nearest-exact")


def compress_jpeg(pixels: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    """Compresses and decompresses each image as JPEG of this quality."""
    images = []
    for image_CHW in pixels:
        file = io.BytesIO()
        array = image_CHW.permute(1, 2, 0).numpy()
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, "JPEG", quality=int(quality))
        decoded = np.array(Image.open(file))
        images.append(torch.from_numpy(decoded.reshape(*decoded.shape[:2], -1)).permute(2, 0, 1))
    return torch.stack(images)


def _to_uint8(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


CORRUPTIONS: dict[str, Corruption] = {
    "noise": Corruption("Gaussian noise", add_noise, (0.04, 0.08, 0.16)),
    "blur": Corruption("Gaussian blur", blur, (0.02, 0.04, 0.08)),
    "bright": Corruption("higher brightness", brighten, (0.1, 0.25, 0.4)),
    "contrast": Corruption("lower contrast", lower_contrast, (0.6, 0.4, 0.2)),
    "pixelate": Corruption("pixelation", pixelate, (0.7, 0.5, 0.3)),
    "jpeg": Corruption("JPEG compression", compress_jpeg, (50, 20, 8)),
}


def draw_images(n: int, max_images: int, seed: int = 0) -> np.ndarray:
    """Returns the sorted indices of at most `max_images` of `n` images, drawn at random."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:max_images])


def measure_robustness(
    classifier: Classifier, pixels: Tensor, labels: np.ndarray, *, seed: int = 0, batch_size: int = 250
) -> dict[str, Any]:
    """Returns the accuracy on clean images and under each corruption with three strengths.

    `pixels` are uint8 (n, C, H, W) of the model's size, `labels` their class indices (n,).
    """
    true = torch.from_numpy(labels)
    clean = _count_correct(classifier, pixels, true, batch_size)
    rows: dict[str, dict[str, Any]] = {}
    for name, corruption in CORRUPTIONS.items():
        levels = []
        for level, strength in enumerate(corruption.strengths):
            generator = torch.Generator().manual_seed(derive_seed("corruption", seed, name, level))
            corrupted = [corruption.apply(batch, strength, generator) for batch in torch.split(pixels, batch_size)]
            correct = _count_correct(classifier, torch.cat(corrupted), true, batch_size)
            interval = list(wilson_interval(correct, len(labels)))
            levels.append({"strength": strength, "accuracy": correct / len(labels), "interval": interval})
        rows[name] = {"description": corruption.description, "levels": levels}
    accuracies = [level["accuracy"] for row in rows.values() for level in row["levels"]]
    return {
        "images": len(labels),
        "clean_accuracy": clean / len(labels),
        "clean_accuracy_interval": list(wilson_interval(clean, len(labels))),
        "mean_accuracy": float(np.mean(accuracies)),
        "corruptions": rows,
    }


def _count_correct(classifier: Classifier, pixels: Tensor, labels: Tensor, batch_size: int) -> int:
    halve = BatchHalver()
    predicted: list[Tensor] = []
    for batch in torch.split(pixels, batch_size):
        predicted += halve(lambda part: classifier.logits(part).argmax(dim=1).cpu(), batch)
    return int((torch.cat(predicted) == labels).sum())
