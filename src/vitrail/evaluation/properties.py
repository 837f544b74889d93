"""What an image is like to look at, and whether the classifier is worse on some kinds than on others."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data import Images, Preprocess
from vitrail.intervals import wilson_interval

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's grey
PROPERTIES = {  # name -> what the number is
    "brightness": "mean grey level of the image, 0 black to 1 white",
    "sharpness": "standard deviation of the Laplacian of the grey image as the model sees it",
    "size": "square root of the image's area, in pixels",
}


def measure_properties(
    images: Images, preprocess: Preprocess, chosen: np.ndarray, tick: Callable[[], object] = lambda: None
) -> dict[str, np.ndarray]:
    """Brightness, sharpness and size of these images, each (n,)."""
    rows = []
    for i in chosen:
        pixels = images[int(i)]
        rows.append((brightness(pixels), sharpness(preprocess.fit_image(pixels)), float(np.sqrt(pixels[0].numel()))))
        tick()
    return dict(zip(PROPERTIES, np.array(rows).reshape(-1, len(PROPERTIES)).T, strict=True))


def grayscale(image_CHW: Tensor) -> Tensor:
    """uint8 (C, H, W) -> floats (H, W) from 0 to 1."""
    weights = torch.tensor(LUMA if len(image_CHW) == 3 else (1.0,)).view(-1, 1, 1)
    return (image_CHW * weights).sum(0) / 255


def brightness(image_CHW: Tensor) -> float:
    """Mean grey level from 0 to 1."""
    means = image_CHW.float().mean(dim=(1, 2))
    return float((means * torch.tensor(LUMA if len(image_CHW) == 3 else (1.0,))).sum()) / 255


def sharpness(image_CHW: Tensor) -> float:
    """Standard deviation of the discrete Laplacian: small where everything is blurred (Pech-Pacheco et al. 2000)."""
    if min(image_CHW.shape[-2:]) < 3:
        return 0.0
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
    return float(F.conv2d(grayscale(image_CHW)[None, None], kernel[None, None]).std(correction=0))


def accuracy_by_quantile(values: np.ndarray, correct: np.ndarray, bins: int = 5) -> list[dict[str, Any]]:
    """Accuracy in equally large parts of the images from the least to the most; one row where all are alike."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = []
    for number in np.unique(places):
        inside = places == number
        n, right = int(inside.sum()), int(correct[inside].sum())
        rows.append(
            {
                "from": float(values[inside].min()),
                "to": float(values[inside].max()),
                "images": n,
                "accuracy": right / n,
                "interval": list(wilson_interval(right, n)),
            }
        )
    return rows
