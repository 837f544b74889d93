"""Four photographs that come with vitrail, for comparisons and as examples; README.md lists their authors."""

from importlib.resources import as_file, files

from torch import Tensor

from vitrail.classifier import BaseClassifier

NAMES = ("cat.jpg", "coffee.jpg", "rocket.jpg", "astronaut.jpg")


def read_sample_photos(classifier: BaseClassifier) -> dict[str, Tensor]:
    """Returns the photographs by file name, as uint8 (C, H, W) of the model's size."""
    photos = {}
    for name in NAMES:
        with as_file(files(__name__).joinpath(name)) as path:
            photos[name] = classifier.read_image(path)
    return photos
