"""Temperature scaling, and thresholds on confidence for selective prediction."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitrail.evaluation.outcome import Outcome
from vitrail.intervals import FALSE_FINDINGS, upper_bound, wilson_interval

TARGET_ACCURACIES = (0.8, 0.9, 0.95, 0.98, 0.99)  # of the images that are answered
MIN_IMAGES = 30  # to fit a temperature
MIN_ANSWERED = 20  # images at the first point of a risk-coverage curve
CANDIDATES = 20  # coverages at which a threshold may be
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """Temperature and thresholds fitted on held-out images. The artifact stores them.

    The logits are divided by `temperature`. It is 1 if it could not be fitted; `reason` then gives the reason.
    `thresholds` has a row for each target accuracy that can be guaranteed, as `find_thresholds` returns it; rows of
    earlier versions have no `guaranteed_accuracy`.
    """

    temperature: float
    fitted_on: str  # split
    images: int
    reason: str | None
    nll_before: float
    nll_after: float
    thresholds: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def calibrate(outcome: Outcome, fitted_on: str = "validation") -> Calibration:
    """Returns temperature and thresholds fitted on held-out images; `outcome` has logits without a temperature."""
    reason = None
    temperature = 1.0
    if len(outcome.labels) < MIN_IMAGES:
        reason = f"{len(outcome.labels)} images are too few, at least {MIN_IMAGES} are needed"
    elif outcome.accuracy == 1:
        reason = "all images are classified correctly, there is no error to fit it on"
    else:
        temperature = fit_temperature(outcome)
    calibrated = apply_temperature(outcome, temperature)
    return Calibration(
        temperature=temperature,
        fitted_on=fitted_on,
        images=len(outcome.labels),
        reason=reason,
        nll_before=outcome.loss,
        nll_after=calibrated.loss,
        thresholds=find_thresholds(calibrated),
    )


def fit_temperature(outcome: Outcome) -> float:
    """Returns the temperature that minimizes the negative log-likelihood (Guo et al. 2017).

    The likelihood has one optimum in 1/T. It is searched between `MIN_TEMPERATURE` and `MAX_TEMPERATURE`.
    """
    from scipy.optimize import minimize_scalar

    result = minimize_scalar(
        lambda log_t: apply_temperature(outcome, math.exp(log_t)).loss,
        bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return math.exp(result.x)


def apply_temperature(outcome: Outcome, temperature: float) -> Outcome:
    """Returns the outcome with its logits divided by `temperature`; predictions do not change."""
    return outcome if temperature == 1 else replace(outcome, logits=outcome.logits / temperature)


def risk_coverage_curve(outcome: Outcome, points: int = 101) -> dict[str, Any]:
    """Returns the error rate (risk) of the most confident images at several coverages, and the area under the curve.

    Geifman & El-Yaniv 2017 (arXiv 1705.08500). The curve begins at `MIN_ANSWERED` images, since the error rate of fewer
    is noise. `aurc` is the mean risk over all coverages. Images of equal confidence count with their mean error, so
    that the order of the images does not matter.
    """
    values, group = np.unique(-outcome.confidence, return_inverse=True)
    error_rate = np.bincount(group, ~outcome.correct) / np.bincount(group, minlength=len(values))
    errors = error_rate[np.sort(group)]
    risk = errors.cumsum() / np.arange(1, len(errors) + 1)
    n = np.unique(np.linspace(min(MIN_ANSWERED, len(errors)), len(errors), points).round().astype(int))
    return {
        "coverage": (n / len(errors)).tolist(),
        "risk": risk[n - 1].tolist(),
        "aurc": float(risk.mean()),
    }


def find_thresholds(outcome: Outcome) -> list[dict[str, Any]]:
    """Returns for each target accuracy the lowest confidence threshold that guarantees it, if any does.

    The guarantee: with a confidence of 95%, the answered images of new data have at least the target accuracy, for all
    returned thresholds together. As in the SGR algorithm of Geifman & El-Yaniv 2017, a threshold passes if the exact
    upper bound of its error rate is low enough, with a correction for the number of thresholds. The candidates are
    `CANDIDATES` coverages that are fixed in advance, so that the correction holds without a search.

    A row has the threshold, and its coverage, accuracy, number of answered images and `guaranteed_accuracy`.
    """
    sorted_confidence = np.sort(outcome.confidence)[::-1]
    last = np.unique(np.ceil(len(sorted_confidence) * np.arange(1, CANDIDATES + 1) / CANDIDATES).astype(int) - 1)
    thresholds = np.unique(sorted_confidence[last])[::-1]
    answered = np.array([(outcome.confidence >= threshold).sum() for threshold in thresholds])
    errors = np.array([(~outcome.correct[outcome.confidence >= threshold]).sum() for threshold in thresholds])
    guaranteed = 1 - upper_bound(errors, answered, 1 - FALSE_FINDINGS / CANDIDATES)
    rows = []
    for target in TARGET_ACCURACIES:
        passing = np.flatnonzero(guaranteed >= target)
        if len(passing):
            best = int(passing[-1])
            rows.append(
                {
                    "target_accuracy": target,
                    "threshold": float(thresholds[best]),
                    "coverage": float(answered[best] / len(sorted_confidence)),
                    "accuracy": float(1 - errors[best] / answered[best]),
                    "images": int(answered[best]),
                    "guaranteed_accuracy": float(guaranteed[best]),
                }
            )
    return rows


def selective_accuracy(outcome: Outcome, threshold: float) -> dict[str, Any]:
    """Returns coverage and accuracy, with its 95% interval, of the images with at least this confidence."""
    answered = outcome.confidence >= threshold
    n = int(answered.sum())
    correct = int(outcome.correct[answered].sum())
    return {
        "images": n,
        "coverage": n / len(answered),
        "accuracy": correct / n if n else None,
        "interval": list(wilson_interval(correct, n)) if n else None,
    }
