"""Four photographs that come with vitrail, for comparisons and as examples; README.md lists their authors."""

from importlib.resources import as_file, files

import torch
from torch import Tensor

from vitrail.classifier import BaseClassifier
from vitrail.data.decode import decode
from vitrail.data.preprocess import Preprocess

NAMES = ("cat.jpg", "coffee.jpg", "rocket.jpg", "astronaut.jpg")


def decode_sample_photos(channels: int) -> dict[str, Tensor]:
    """Returns the photographs by file name, as uint8 (C, h, w) of their own size."""
    photos = {}
    for name in NAMES:
        with as_file(files(__name__).joinpath(name)) as path:
            photos[name] = decode(path, channels)
    return photos


def read_sample_photos(classifier: BaseClassifier) -> dict[str, Tensor]:
    """Returns the photographs by file name, as uint8 (C, H, W) of the model's size; noise instead of them for bands."""
    if classifier.preprocess.has_bands:
        return dict(zip(NAMES, draw_noise(classifier.preprocess, len(NAMES)), strict=True))
    photos = decode_sample_photos(classifier.preprocess.channels)
    return {name: classifier.read_image(pixels) for name, pixels in photos.items()}


def draw_noise(preprocess: Preprocess, n: int) -> Tensor:
    """Returns images of the model's size, (n, C, H, W), of noise with the mean and the deviation of each channel."""
    blank_nCHW = preprocess.blank(n)
    scale = 255 if preprocess.values == "uint8" else 1
    std_C11 = scale * torch.tensor(preprocess.std)[:, None, None]
    noise_nCHW = blank_nCHW + std_C11 * torch.randn(blank_nCHW.shape, generator=torch.Generator().manual_seed(0))
    return (noise_nCHW.round().clamp(0, 255) if preprocess.values == "uint8" else noise_nCHW).to(preprocess.dtype)
