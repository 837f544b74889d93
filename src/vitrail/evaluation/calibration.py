"""Temperature scaling, and thresholds on confidence for selective prediction."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitrail.evaluation.outcome import Outcome
from vitrail.intervals import wilson_interval

TARGET_ACCURACIES = (0.8, 0.9, 0.95, 0.98, 0.99)  # of the images that are answered
MIN_IMAGES = 30  # to fit a temperature
MIN_ANSWERED = 20  # images that a threshold must leave, for a meaningful accuracy
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """Temperature and thresholds fitted on held-out images. The artifact stores them.

    The logits are divided by `temperature`. It is 1 if it could not be fitted; `reason` then gives the reason.
    `thresholds` has a row for each reachable target accuracy, as `find_threshold` returns it.
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

    Geifman & El-Yaniv 2017 (arXiv 1705.08500). `aurc` is the mean risk over all coverages.
    """
    order = np.argsort(-outcome.confidence, kind="stable")
    errors = ~outcome.correct[order]
    risk = errors.cumsum() / np.arange(1, len(errors) + 1)
    n = np.unique(np.linspace(1, len(errors), min(points, len(errors))).round().astype(int))
    return {
        "coverage": (n / len(errors)).tolist(),
        "risk": risk[n - 1].tolist(),
        "aurc": float(risk.mean()),
    }


def find_threshold(outcome: Outcome, target_accuracy: float) -> dict[str, Any] | None:
    """Returns the lowest confidence threshold at which the answered images reach `target_accuracy`.

    The row also has the coverage and the accuracy at that threshold. Returns None if no threshold reaches the target
    with at least `MIN_ANSWERED` answered images.
    """
    order = np.argsort(-outcome.confidence, kind="stable")
    sorted_confidence = outcome.confidence[order]
    correct = outcome.correct[order].cumsum()
    n = np.arange(1, len(order) + 1)
    # images of equal confidence are answered together: a threshold cannot separate them
    is_last_of_ties = np.append(sorted_confidence[1:] < sorted_confidence[:-1], True)
    reached = np.flatnonzero(is_last_of_ties & (correct / n >= target_accuracy) & (n >= MIN_ANSWERED))
    if not len(reached):
        return None
    last = int(reached[-1])
    return {
        "target_accuracy": target_accuracy,
        "threshold": float(sorted_confidence[last]),
        "coverage": float(n[last] / len(order)),
        "accuracy": float(correct[last] / n[last]),
    }


def find_thresholds(outcome: Outcome) -> list[dict[str, Any]]:
    """Returns a row of `find_threshold` for each target accuracy that a threshold reaches."""
    return [row for target in TARGET_ACCURACIES if (row := find_threshold(outcome, target)) is not None]


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
