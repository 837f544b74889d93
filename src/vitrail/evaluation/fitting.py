"""What is fitted on validation images after training: the temperature, the thresholds of labels, and `unlike`."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.data.images import Images
from vitrail.evaluation.calibration import calibrate
from vitrail.evaluation.multi_label import MultiLabelOutcome
from vitrail.evaluation.numbers import NumberOutcome
from vitrail.evaluation.outcomes import AnyOutcome
from vitrail.evaluation.thresholds import calibrate_labels
from vitrail.evaluation.unlike import UnlikeFit, fit_unlike_on
from vitrail.module_classifier import TorchClassifier

C = TypeVar("C", bound=TorchClassifier)


def calibrate_classifier(classifier: C, uncalibrated: AnyOutcome, fitted_on: str = "validation") -> C:
    """Returns the classifier with what is fitted on held-out images: a temperature, and thresholds of labels.

    Numbers have neither.
    """
    if isinstance(uncalibrated, MultiLabelOutcome):
        fitted = calibrate_labels(uncalibrated, fitted_on)
        origin = {**classifier.origin, "calibration": fitted.to_json()}
        return replace(classifier, temperature=fitted.temperature, thresholds=fitted.label_thresholds, origin=origin)
    if isinstance(uncalibrated, NumberOutcome):
        return classifier
    calibration = calibrate(uncalibrated, fitted_on)
    origin = {**classifier.origin, "calibration": calibration.to_json()}
    return replace(classifier, temperature=calibration.temperature, origin=origin)


def with_unlike(
    classifier: C,
    validation: Images,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    skip_unreadable: bool = False,
    on_batch: Callable[[int], object] = lambda images: None,
) -> tuple[C, UnlikeFit]:
    """Returns the classifier with `unlike` fitted on validation images, and the fit, or why there is none."""
    if not isinstance(classifier, Classifier):
        return classifier, UnlikeFit(None, "a model that is not a ViT has no features")
    fitted = fit_unlike_on(
        classifier,
        validation,
        batch_size=batch_size,
        workers=workers,
        skip_unreadable=skip_unreadable,
        on_batch=on_batch,
    )
    return replace(classifier, unlike=fitted.fit), fitted


def calibrated_outcome(uncalibrated: AnyOutcome, classifier: BaseClassifier) -> AnyOutcome:
    """Returns the outcome that the calibrated classifier has on the same images."""
    if isinstance(uncalibrated, NumberOutcome):
        return uncalibrated
    if isinstance(uncalibrated, MultiLabelOutcome):
        uncalibrated = replace(uncalibrated, thresholds=classifier.thresholds)
    return uncalibrated.with_temperature(classifier.temperature)
