"""How sure and how right, and when to abstain."""

from dataclasses import fields
from typing import Any

from vitrail.evaluation.calibration import (
    Calibration,
    apply_temperature,
    brier_score,
    calibrate,
    find_thresholds,
    risk_coverage_curve,
    selective_accuracy,
)
from vitrail.evaluation.metrics import expected_calibration_error, reliability_bins
from vitrail.evaluation.outcome import Outcome, compute_outcome
from vitrail.report.subject import Subject


def sureness(subject: Subject) -> tuple[dict[str, Any], dict[str, Any]]:
    """Calibration before and after the temperature, and what abstaining gives.

    The temperature is the artefact's. If that has none, one is fitted on validation images for comparison alone; the
    scored images never choose it.
    """
    outcome = subject.evaluation.outcome
    stored = subject.evaluation.temperature
    plain = apply_temperature(outcome, 1 / stored)
    known = subject.classifier.origin.get("calibration")
    kept = known is not None
    fitted: Calibration | None = None
    chosen: list[dict[str, Any]] = []  # thresholds on the probabilities that the classifier gives today
    if known is not None:
        fitted = Calibration(**{each.name: known.get(each.name) for each in fields(Calibration)})
        chosen = fitted.thresholds
    elif subject.validation is not None and stored == 1:
        held_out = compute_outcome(subject.classifier, subject.validation, skip_unreadable=subject.skip_unreadable)
        fitted, chosen = calibrate(held_out), find_thresholds(held_out)
    temperature = fitted.temperature if fitted else stored
    mended = apply_temperature(plain, temperature)
    calibration = {
        "temperature": temperature,
        "kept": kept or stored != 1,
        "fitted_on": fitted.fitted_on if fitted else None,
        "images": fitted.images if fitted else None,
        "why": fitted.why if fitted else None if stored != 1 else "there are no validation images to fit it on",
        "optimistic": bool(fitted and fitted.fitted_on == subject.split),
        "before": sure(plain),
        "after": sure(mended) if temperature != 1 else None,
    }
    rows = [
        {
            "wanted": row["wanted"],
            "threshold": row["threshold"],
            "coverage_chosen": row["coverage"],
            "accuracy_chosen": row["accuracy"],
            **selective_accuracy(outcome, row["threshold"]),
        }
        for row in chosen
    ]
    abstain = {
        "curve": risk_coverage_curve(outcome),
        "chosen_on": fitted.fitted_on if fitted else None,
        "advised": advised(rows, outcome.accuracy),
        "thresholds": rows,
    }
    return calibration, abstain


def sure(outcome: Outcome) -> dict[str, Any]:
    """How sure and how right: the three numbers and the diagram."""
    return {
        "ece": expected_calibration_error(outcome),
        "nll": outcome.loss,
        "brier": brier_score(outcome),
        "confidence": float(outcome.probabilities.max(axis=1).mean()),
        "bins": reliability_bins(outcome),
    }


def advised(rows: list[dict[str, Any]], accuracy: float) -> float | None:
    """The wanted accuracy to begin with: the first that at least halves the error."""
    better = [row["wanted"] for row in rows if 1 - row["wanted"] <= (1 - accuracy) / 2]
    return better[0] if better else rows[-1]["wanted"] if rows else None
