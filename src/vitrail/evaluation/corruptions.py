"""How the accuracy holds when images get worse, after Hendrycks & Dietterich 2019 (arXiv 1903.12261).

Six of their fifteen kinds in three strengths, on the images as the model sees them. The strengths are ours, relative
to the image's size where that matters: the numbers compare models on one set of images, not with ImageNet-C.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.data import Images
from vitrail.data.randomness import derive_seed
from vitrail.intervals import wilson_interval


@dataclass(frozen=True)
class Corruption:
    """What happens to uint8 pixels (B, C, H, W), and the three strengths of it, mild to severe."""

    description: str
    apply: Callable[[Tensor, float, torch.Generator], Tensor]
    strengths: tuple[float, float, float]


def add_noise(pixels: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of this deviation, as a part of the full range."""
    return _eight_bit(pixels + 255 * deviation * torch.randn(pixels.shape, generator=generator))


def blur(pixels: Tensor, part: float, generator: torch.Generator) -> Tensor:
    """Gaussian blur whose deviation is this part of the shorter side."""
    sigma = part * min(pixels.shape[-2:])
    width = min(2 * int(np.ceil(3 * sigma)) + 1, 2 * (min(pixels.shape[-2:]) // 2) - 1)
    return F.gaussian_blur(pixels, [max(width, 1)] * 2, [sigma, sigma])


def brighten(pixels: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """All channels raised by a part of the full range."""
    return _eight_bit(pixels + 255 * amount)


def lower_contrast(pixels: Tensor, kept: float, generator: torch.Generator) -> Tensor:
    """Contrast lowered to this part of what it was."""
    mean = pixels.float().mean(dim=(1, 2, 3), keepdim=True)
    return _eight_bit((pixels - mean) * kept + mean)


def pixelate(pixels: Tensor, part: float, generator: torch.Generator) -> Tensor:
    """The image made small and large again."""
    h, w = pixels.shape[-2:]
    small = F.resize(pixels, [max(1, round(h * part)), max(1, round(w * part))], antialias=True)
    return F.resize(small, [h, w], interpolation=F.InterpolationMode.NEAREST_EXACT)


def compress_jpeg(pixels: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    """Through JPEG of this quality."""
    made = []
    for image_CHW in pixels:
        file = io.BytesIO()
        array = image_CHW.permute(1, 2, 0).numpy()
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, "JPEG", quality=int(quality))
        read = np.array(Image.open(file))
        made.append(torch.from_numpy(read.reshape(*read.shape[:2], -1)).permute(2, 0, 1))
    return torch.stack(made)


def _eight_bit(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


CORRUPTIONS: dict[str, Corruption] = {
    "noise": Corruption("Gaussian noise", add_noise, (0.04, 0.08, 0.16)),
    "blur": Corruption("Gaussian blur", blur, (0.02, 0.04, 0.08)),
    "bright": Corruption("more light", brighten, (0.1, 0.25, 0.4)),
    "contrast": Corruption("less contrast", lower_contrast, (0.6, 0.4, 0.2)),
    "pixelate": Corruption("fewer pixels", pixelate, (0.7, 0.5, 0.3)),
    "jpeg": Corruption("JPEG compression", compress_jpeg, (50, 20, 8)),
}


def measure_robustness(
    classifier: Classifier,
    images: Images,
    *,
    max_images: int = 2000,
    seed: int = 0,
    batch_size: int = 250,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Accuracy on `most` images, drawn by `seed`, clean and under each corruption in three strengths.

    `tick` is called once a corruption. Raises `ImageError` naming a file that cannot be read.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:max_images])
    pixels = images.load_batch(classifier.preprocess, chosen)
    labels = torch.from_numpy(images.labels[chosen])
    clean = _right(classifier, pixels, labels, batch_size)
    rows: dict[str, dict[str, Any]] = {}
    for name, corruption in CORRUPTIONS.items():
        levels = []
        for level, strength in enumerate(corruption.strengths):
            generator = torch.Generator().manual_seed(derive_seed("corruption", seed, name, level))
            parts = [corruption.apply(part, strength, generator) for part in torch.split(pixels, batch_size)]
            right = _right(classifier, torch.cat(parts), labels, batch_size)
            interval = list(wilson_interval(right, len(labels)))
            levels.append({"strength": strength, "accuracy": right / len(labels), "interval": interval})
        rows[name] = {"about": corruption.description, "levels": levels}
        tick()
    accuracies = [level["accuracy"] for row in rows.values() for level in row["levels"]]
    return {
        "images": len(labels),
        "clean": clean / len(labels),
        "clean_interval": list(wilson_interval(clean, len(labels))),
        "mean": float(np.mean(accuracies)),
        "corruptions": rows,
    }


def _right(classifier: Classifier, pixels: Tensor, labels: Tensor, batch: int) -> int:
    """How many are classified rightly."""
    answers = [classifier.logits(part).argmax(dim=1).cpu() for part in torch.split(pixels, batch)]
    return int((torch.cat(answers) == labels).sum())
