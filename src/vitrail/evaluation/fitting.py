"""What is fitted on validation images after training: the temperature, and the thresholds of labels."""

from dataclasses import replace
from typing import TypeVar

from vitrail.classifier import BaseClassifier
from vitrail.evaluation.calibration import calibrate
from vitrail.evaluation.multi_label import MultiLabelOutcome
from vitrail.evaluation.outcomes import AnyOutcome
from vitrail.evaluation.thresholds import calibrate_labels
from vitrail.module_classifier import TorchClassifier

C = TypeVar("C", bound=TorchClassifier)


def calibrate_classifier(classifier: C, uncalibrated: AnyOutcome) -> C:
    """Returns the classifier with what is fitted on validation images: a temperature, and thresholds of labels."""
    if isinstance(uncalibrated, MultiLabelOutcome):
        fitted = calibrate_labels(uncalibrated)
        origin = {**classifier.origin, "calibration": fitted.to_json()}
        return replace(classifier, temperature=fitted.temperature, thresholds=fitted.label_thresholds, origin=origin)
    calibration = calibrate(uncalibrated)
    origin = {**classifier.origin, "calibration": calibration.to_json()}
    return replace(classifier, temperature=calibration.temperature, origin=origin)


def calibrated_outcome(uncalibrated: AnyOutcome, classifier: BaseClassifier) -> AnyOutcome:
    """Returns the outcome that the calibrated classifier has on the same images."""
    if isinstance(uncalibrated, MultiLabelOutcome):
        uncalibrated = replace(uncalibrated, thresholds=classifier.thresholds)
    return uncalibrated.with_temperature(classifier.temperature)
