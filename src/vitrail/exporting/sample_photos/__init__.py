"""Four photographs that come with vitrail, for comparisons and as examples; README.md lists their authors."""

from importlib.resources import as_file, files

from torch import Tensor

from vitrail.classifier import BaseClassifier
from vitrail.data.decode import decode

NAMES = ("cat.jpg", "coffee.jpg", "rocket.jpg", "astronaut.jpg")


def decode_sample_photos(channels: int) -> dict[str, Tensor]:
    """Returns the photographs by file name, as uint8 (C, h, w) of their own size."""
    photos = {}
    for name in NAMES:
        with as_file(files(__name__).joinpath(name)) as path:
            photos[name] = decode(path, channels)
    return photos


def read_sample_photos(classifier: BaseClassifier) -> dict[str, Tensor]:
    """Returns the photographs by file name, as uint8 (C, H, W) of the model's size."""
    photos = decode_sample_photos(classifier.preprocess.channels)
    return {name: classifier.read_image(pixels) for name, pixels in photos.items()}
