"""The real images on which an exported program is compared with its classifier."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.data.decode import ImageError
from vitrail.data.encoded import EncodedImages
from vitrail.data.images import Images
from vitrail.data.loader import EvaluationLoader
from vitrail.data.open import open_source
from vitrail.data.preprocess import Preprocess
from vitrail.data.python_data import Data
from vitrail.data.scoring import SCORING_ORDER, open_images_to_score
from vitrail.data.source import Listing
from vitrail.exporting.sample_photos import decode_sample_photos, draw_noise
from vitrail.weights.origin import read_origin

DEFAULT_DATA = "digits"  # gray images that come with scikit-learn
DEFAULT_IMAGES = 64
BATCH_SIZE = 64


@dataclass(frozen=True)
class Probes:
    """Images to compare on; `is_labeled` if their labels are classes of the classifier."""

    images: Images
    description: str
    is_labeled: bool
    data: Data | None = None  # where they come from; None: from vitrail

    def batches(self, classifier: BaseClassifier) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of pixels of the model's size, with their labels."""
        return iter(EvaluationLoader(self.images, classifier.preprocess, BATCH_SIZE, workers=0))

    def first_pixels(self, classifier: BaseClassifier) -> Tensor:
        """Returns the pixels of the first batch."""
        return next(self.batches(classifier))[0]


def load_probes(classifier: Classifier, data: Data | None, skip_unreadable: bool = False) -> Probes:
    """Returns the images of `data` that `vitrail evaluate` would score; without `data`, some of the model's kind.

    With `skip_unreadable`, images that cannot be read are left out, and the description counts them. Raises
    `VitrailError` for classes that the classifier does not have, and if no image can be read.
    """
    probes = list_probes(classifier, data, missing_ok=skip_unreadable)
    if not skip_unreadable:
        return probes
    unreadable: list[ImageError] = []
    for _ in EvaluationLoader(probes.images, classifier.preprocess, BATCH_SIZE, on_error=unreadable.append):
        pass
    if not unreadable:
        return probes
    images = probes.images.exclude(unreadable)
    if not len(images):
        raise unreadable[0]
    return replace(probes, images=images, description=f"{probes.description}, without {len(unreadable)} unreadable")


def list_probes(classifier: Classifier, data: Data | None, missing_ok: bool) -> Probes:
    """Returns the images without reading them."""
    channels, trained_on = classifier.preprocess.source_channels, read_origin(classifier.origin).get("data", {})
    is_trained_on_default = trained_on.get("name") == DEFAULT_DATA and classifier.classes
    if classifier.classes and (data is not None or is_trained_on_default):
        source = data or DEFAULT_DATA
        scored = open_images_to_score(source, classifier.classes, channels, trained_on, missing_ok, classifier.task)
        return Probes(scored.images, scored.description, is_labeled=True, data=source)
    if data is None and classifier.preprocess.has_bands:
        return draw_bands(classifier.preprocess)
    if data is None and channels == 3:
        return cut_photos()
    listing = open_source(data or DEFAULT_DATA, channels, missing_ok, classifier.task if data else None)
    split = next(listing.splits[name] for name in SCORING_ORDER if len(listing.splits.get(name, ())))
    split = split if data else split.subset(range(min(DEFAULT_IMAGES, len(split))))
    images = drop_labels(split)
    return Probes(images, f"{len(images)} images of {listing.name}", is_labeled=False, data=data)


def drop_labels(listing: Listing) -> Images:
    """Returns the images as if all had the same label."""
    labels = np.zeros(len(listing), dtype=np.int64)
    files = listing.pixels.locations() if isinstance(listing.pixels, EncodedImages) else None
    return Images(listing.pixels, listing.names, labels, ("",), files)


def draw_bands(preprocess: Preprocess) -> Probes:
    """Returns images of noise, since there are no photographs of bands."""
    names = [f"noise {i}" for i in range(DEFAULT_IMAGES)]
    labels = np.zeros(DEFAULT_IMAGES, dtype=np.int64)
    images = Images(draw_noise(preprocess, DEFAULT_IMAGES), names, labels, ("",))
    return Probes(images, f"{DEFAULT_IMAGES} images of noise", is_labeled=False)


def cut_photos() -> Probes:
    """Returns parts of the photographs that come with vitrail, of many sizes and shapes."""
    photos = decode_sample_photos(3)
    random = np.random.Generator(np.random.Philox(0))
    pixels, names = [], []
    for i in range(DEFAULT_IMAGES):
        name = [*photos][i % len(photos)]
        whole = np.array(photos[name].shape[1:])
        height, width = (whole * random.uniform(0.5, 1, 2)).astype(int).tolist()
        top, left = random.integers(0, whole - (height, width) + 1).tolist()
        pixels.append(photos[name][:, top : top + height, left : left + width].contiguous())
        names.append(f"{name} {i}")
    images = Images(pixels, names, np.zeros(len(pixels), dtype=np.int64), ("",))
    return Probes(images, f"{len(images)} parts of {len(photos)} photographs", is_labeled=False)
