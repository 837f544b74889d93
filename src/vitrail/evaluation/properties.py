"""Properties of images (brightness, sharpness, size), and the accuracy as a function of them."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.intervals import wilson_interval

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's conversion to grayscale
PROPERTIES = {  # name -> description
    "brightness": "mean gray level, from 0 (black) to 1 (white)",
    "sharpness": "standard deviation of the Laplacian of the gray image at the model's resolution",
    "size": "square root of the image's area, in pixels",
}


def measure_properties(image_CHW: Tensor, fitted_CHW: Tensor) -> tuple[float, float, float]:
    """Returns the `PROPERTIES` of an image, uint8: `image_CHW` as decoded, `fitted_CHW` at the model's size."""
    return brightness(image_CHW), sharpness(fitted_CHW), float(np.sqrt(image_CHW[0].numel()))


def grayscale(image_CHW: Tensor) -> Tensor:
    """Converts uint8 (C, H, W) to floats (H, W) from 0 to 1."""
    return (image_CHW * _channel_weights(image_CHW).view(-1, 1, 1)).sum(0) / 255


def brightness(image_CHW: Tensor) -> float:
    """Returns the mean gray level, from 0 to 1."""
    means = image_CHW.float().mean(dim=(1, 2))
    return float((means * _channel_weights(image_CHW)).sum()) / 255


def sharpness(image_CHW: Tensor) -> float:
    """Returns the standard deviation of the discrete Laplacian; low for blurred images (Pech-Pacheco et al. 2000)."""
    if min(image_CHW.shape[-2:]) < 3:
        return 0.0
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
    return float(F.conv2d(grayscale(image_CHW)[None, None], kernel[None, None]).std(correction=0))


def accuracy_by_quantile(values: np.ndarray, correct: np.ndarray, bins: int = 5) -> list[dict[str, Any]]:
    """Returns the accuracy in `bins` quantile bins of `values`, from low to high; one bin if all values are equal."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    bin_of_image = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = []
    for number in np.unique(bin_of_image):
        inside = bin_of_image == number
        n, n_correct = int(inside.sum()), int(correct[inside].sum())
        rows.append(
            {
                "from": float(values[inside].min()),
                "to": float(values[inside].max()),
                "images": n,
                "accuracy": n_correct / n,
                "interval": list(wilson_interval(n_correct, n)),
            }
        )
    return rows


def _channel_weights(image_CHW: Tensor) -> Tensor:
    return torch.tensor(LUMA if len(image_CHW) == 3 else (1.0,))
