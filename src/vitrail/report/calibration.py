"""Calibration before and after temperature scaling, and selective prediction."""

from dataclasses import fields
from typing import Any

from vitrail.evaluation import Outcome, compute_outcome
from vitrail.evaluation.calibration import (
    Calibration,
    apply_temperature,
    calibrate,
    find_thresholds,
    risk_coverage_curve,
    selective_accuracy,
)
from vitrail.evaluation.calibration_error import confidence_bias_interval, measure_calibration_error
from vitrail.evaluation.metrics import brier_score, reliability_bins
from vitrail.intervals import Interval, t_interval
from vitrail.report.subject import Subject
from vitrail.report.verdicts import MIN_VERDICT_IMAGES
from vitrail.weights.origin import read_origin

Thresholds = list[dict[str, Any]]


def collect_calibration(subject: Subject) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the section on calibration and the section on selective prediction.

    The temperature is the one that the artifact stores. If it stores none, one is fitted on validation images for
    comparison only. It is never fitted on the scored images.
    """
    outcome = subject.evaluation.outcome
    stored_temperature = subject.evaluation.temperature
    calibration, thresholds = find_calibration(subject)
    is_stored = read_origin(subject.classifier.origin).get("calibration") is not None or stored_temperature != 1
    temperature = calibration.temperature if calibration else stored_temperature
    uncalibrated = apply_temperature(outcome, 1 / stored_temperature)
    calibrated = apply_temperature(uncalibrated, temperature)
    reason = None if is_stored else "there are no validation images to fit it on"
    calibration_section = {
        "temperature": temperature,
        "is_stored": is_stored,
        "fitted_on": calibration.fitted_on if calibration else None,
        "images": calibration.images if calibration else None,
        "reason": calibration.reason if calibration else reason,
        "optimistic": bool(calibration and calibration.fitted_on == subject.split),
        "before": measure_calibration(uncalibrated),
        "after": measure_calibration(calibrated) if temperature != 1 else None,
        "loss_decrease_interval": loss_decrease_interval(uncalibrated, calibrated),
    }
    rows = [apply_threshold(outcome, threshold) for threshold in thresholds]
    selective_section = {
        "curve": risk_coverage_curve(outcome),
        "chosen_on": calibration.fitted_on if calibration else None,
        "chosen_on_images": calibration.images if calibration else None,
        "is_guaranteed": all(row["guaranteed_accuracy"] is not None for row in rows),
        "recommended": recommend_target(rows, outcome.accuracy),
        "thresholds": rows,
    }
    return calibration_section, selective_section


def loss_decrease_interval(before: Outcome, after: Outcome) -> Interval | None:
    """Returns the 95% interval of the mean decrease of the loss; None with too few mistakes to estimate it.

    A temperature changes the loss of the few mistakes much, and that of all other images a little in the opposite
    direction: where few mistakes are observed, the mean over the images says little about other images.
    """
    mistakes = int((~before.correct).sum())
    return t_interval(before.losses - after.losses) if mistakes >= MIN_VERDICT_IMAGES else None


def find_calibration(subject: Subject) -> tuple[Calibration | None, Thresholds]:
    """Returns the calibration of the artifact, else one fitted on validation images, else None.

    The thresholds apply to the probabilities that the classifier returns now.
    """
    stored = read_origin(subject.classifier.origin).get("calibration")
    if stored is not None:
        calibration = Calibration(**{field.name: stored.get(field.name) for field in fields(Calibration)})
        return calibration, calibration.thresholds
    if subject.validation is not None and subject.evaluation.temperature == 1:
        held_out = compute_outcome(subject.classifier, subject.validation, skip_unreadable=subject.skip_unreadable)
        return calibrate(held_out), find_thresholds(held_out)
    return None, []


def measure_calibration(outcome: Outcome) -> dict[str, Any]:
    """Returns calibration error, negative log-likelihood, Brier score, mean confidence, and reliability bins."""
    error = measure_calibration_error(outcome)
    return {
        "ece": error.ece,
        "ece_corrected": error.corrected,
        "ece_interval": list(error.interval),
        "confidence_bias_interval": confidence_bias_interval(outcome),
        "nll": outcome.loss,
        "brier": brier_score(outcome),
        "confidence": float(outcome.confidence.mean()),
        "bins": reliability_bins(outcome),
    }


def apply_threshold(outcome: Outcome, threshold: dict[str, Any]) -> dict[str, Any]:
    """Returns a threshold with its scores on the images it was chosen on, and on the scored images."""
    return {
        "target_accuracy": threshold["target_accuracy"],
        "threshold": threshold["threshold"],
        "chosen_coverage": threshold["coverage"],
        "chosen_accuracy": threshold["accuracy"],
        "guaranteed_accuracy": threshold.get("guaranteed_accuracy"),
        **selective_accuracy(outcome, threshold["threshold"]),
    }


def recommend_target(rows: Thresholds, accuracy: float) -> float | None:
    """Returns the first guaranteed target accuracy that at least halves the error rate, else the highest one."""
    rows = [row for row in rows if row["guaranteed_accuracy"] is not None]
    better = [row["target_accuracy"] for row in rows if 1 - row["target_accuracy"] <= (1 - accuracy) / 2]
    return better[0] if better else rows[-1]["target_accuracy"] if rows else None
