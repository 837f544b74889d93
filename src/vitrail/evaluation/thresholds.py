"""Thresholds of labels, chosen on validation images, and the temperature of a classifier for several labels."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitrail.evaluation.calibration import MAX_TEMPERATURE, MIN_IMAGES, MIN_TEMPERATURE
from vitrail.evaluation.multi_label import MultiLabelOutcome, f1_scores
from vitrail.tasks import DEFAULT_THRESHOLD

MIN_POSITIVES = 5  # images with a label, below which its threshold stays at 0.5


@dataclass(frozen=True)
class LabelCalibration:
    """Temperature and thresholds fitted on held-out images. The artifact stores them.

    The temperature is 1 if it could not be fitted; `reason` then gives the reason. `too_rare` names the labels with too
    few images, whose threshold is 0.5.
    """

    temperature: float
    fitted_on: str  # split
    images: int
    reason: str | None
    nll_before: float
    nll_after: float
    label_thresholds: tuple[float, ...]
    too_rare: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        lists = {"label_thresholds": list(self.label_thresholds), "too_rare": list(self.too_rare)}
        return {**vars(self), **lists, "thresholds": []}  # no thresholds for a target accuracy


def calibrate_labels(outcome: MultiLabelOutcome, fitted_on: str = "validation") -> LabelCalibration:
    """Returns temperature and thresholds fitted on held-out images; `outcome` has logits without a temperature."""
    reason = None
    temperature = 1.0
    if len(outcome.labels) < MIN_IMAGES:
        reason = f"{len(outcome.labels)} images are too few, at least {MIN_IMAGES} are needed"
    else:
        temperature = fit_temperature(outcome)
    calibrated = outcome.with_temperature(temperature)
    thresholds = choose_thresholds(calibrated)
    too_rare = tuple(name for name, is_few in zip(outcome.classes, has_few(outcome), strict=True) if is_few)
    return LabelCalibration(
        temperature, fitted_on, len(outcome.labels), reason, outcome.loss, calibrated.loss, thresholds, too_rare
    )


def has_few(outcome: MultiLabelOutcome) -> np.ndarray:
    """Returns which labels have too few images for a threshold, (Y,)."""
    few: np.ndarray = outcome.labels.sum(axis=0) < MIN_POSITIVES
    return few


def choose_thresholds(outcome: MultiLabelOutcome) -> tuple[float, ...]:
    """Returns the threshold of each label with the highest F1; 0.5 for a label with too few images."""
    few, labels = has_few(outcome), outcome.labels
    return tuple(
        DEFAULT_THRESHOLD if few[k] else choose_threshold(outcome.probabilities[:, k], labels[:, k])
        for k in range(len(outcome.classes))
    )


def choose_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the threshold with the highest F1, between two probabilities; of equal ones the closest to 0.5."""
    order = np.argsort(-probabilities, kind="stable")
    descending = probabilities[order]
    ends = np.append(descending[:-1] != descending[1:], True)  # a threshold does not separate equal probabilities
    hits = labels[order].cumsum()[ends].astype(float)
    predicted = np.flatnonzero(ends) + 1
    f1 = f1_scores(hits, labels.sum() + predicted - 2 * hits)
    below = np.append(descending[np.flatnonzero(ends)[:-1] + 1], 0.0)
    thresholds = (descending[ends] + below) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(thresholds[best[np.argmin(np.abs(thresholds[best] - DEFAULT_THRESHOLD))]])


def fit_temperature(outcome: MultiLabelOutcome) -> float:
    """Returns the temperature that minimizes the binary cross-entropy over all labels."""
    from scipy.optimize import minimize_scalar

    result = minimize_scalar(
        lambda log_t: replace(outcome, logits=outcome.logits / math.exp(log_t)).loss,
        bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return math.exp(result.x)
