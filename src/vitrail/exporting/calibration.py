"""The images on which activations are measured, to choose the scales of their 8-bit integers."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.data.images import Images
from vitrail.data.loader import EvaluationLoader
from vitrail.data.open import open_source
from vitrail.data.scoring import SCORING_ORDER, open_known_splits
from vitrail.errors import UsageError
from vitrail.exporting.probes import Probes, drop_labels
from vitrail.weights.origin import read_origin

CALIBRATION_ORDER = ("train", "validation", "all", "test")  # the first split that exists is measured
CALIBRATION_IMAGES = 300  # NNCF's own default


def read_calibration_pixels(classifier: Classifier, probes: Probes) -> tuple[list[Tensor], str]:
    """Returns pixels (1, C, H, W) of some images of the data that are verified on, and a phrase that says which.

    They are training images if there are any, else validation images, else those that the program is verified on.
    Unreadable images are left out. Raises `UsageError` if there are no data.
    """
    if probes.data is None:
        raise UsageError(
            "int8 for OpenVINO needs images to calibrate on",
            "give labeled images of the kind that the model will see: --verify-data DATA",
        )
    trained_on = read_origin(classifier.origin).get("data", {})
    source_channels = classifier.preprocess.source_channels
    splits: Mapping[str, Images]
    if classifier.classes:
        splits = open_known_splits(probes.data, classifier.classes, source_channels, trained_on, True, classifier.task)
    else:
        source = open_source(probes.data, source_channels, True)
        splits = {name: drop_labels(listing) for name, listing in source.splits.items()}
    name = next(name for name in CALIBRATION_ORDER if len(splits.get(name, ())))
    images = splits[name]
    chosen = np.linspace(0, len(images) - 1, min(CALIBRATION_IMAGES, len(images))).round().astype(int)
    loader = EvaluationLoader(images.subset(chosen), classifier.preprocess, 1, workers=0, on_error=lambda error: None)
    pixels = [pixels_1CHW for pixels_1CHW, _ in loader if len(pixels_1CHW)]
    if not pixels:
        raise UsageError(f"none of the {name} images can be read", "int8 needs images to calibrate on")
    is_scored = name == next(name for name in SCORING_ORDER if len(splits.get(name, ())))
    return pixels, f"{len(pixels)} {name} images" + (", which are verified on, too" if is_scored else "")
