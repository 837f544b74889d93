"""How sure, and how right: calibration, the temperature that mends it, and when to abstain."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitrail.evaluation.outcome import Outcome
from vitrail.intervals import wilson_interval

TARGET_ACCURACIES = (0.8, 0.9, 0.95, 0.98, 0.99)  # accuracies that people ask of the images that are answered
MIN_IMAGES = 30  # images below which a temperature says nothing
MIN_ANSWERED = 20  # answered images below which an accuracy is chance
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """What validation images say of a classifier's sureness; kept in the artefact.

    `temperature` divides the logits; it is 1 where it could not be fitted, and `why` says why not. `thresholds` has for
    each wanted accuracy the least probability that must be reached to answer.
    """

    temperature: float
    fitted_on: str
    images: int
    why: str | None
    nll_before: float
    nll_after: float
    thresholds: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return dict(vars(self))


def calibrate(outcome: Outcome, fitted_on: str = "validation") -> Calibration:
    """Temperature and thresholds from held-out images; `outcome` has the logits before any temperature."""
    why = None
    temperature = 1.0
    if len(outcome.labels) < MIN_IMAGES:
        why = f"{len(outcome.labels)} images are too few; it takes {MIN_IMAGES}"
    elif outcome.accuracy == 1:
        why = "no image was mistaken, so nothing says how sure is too sure"
    else:
        temperature = fit_temperature(outcome)
    after = apply_temperature(outcome, temperature)
    return Calibration(
        temperature=temperature,
        fitted_on=fitted_on,
        images=len(outcome.labels),
        why=why,
        nll_before=outcome.loss,
        nll_after=after.loss,
        thresholds=find_thresholds(after),
    )


def fit_temperature(outcome: Outcome) -> float:
    """The number that logits are divided by for the least negative log-likelihood (Guo et al. 2017).

    No label changes. In 1/T the likelihood has one optimum, which is looked for between 1/20 and 20.
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: apply_temperature(outcome, math.exp(log_t)).loss,
        bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return math.exp(found.x)


def apply_temperature(outcome: Outcome, temperature: float) -> Outcome:
    """The same answers with the logits divided by `temperature`."""
    return outcome if temperature == 1 else replace(outcome, logits=outcome.logits / temperature)


def brier_score(outcome: Outcome) -> float:
    """Mean squared distance of the probabilities from the truth (Brier 1950), over all classes: 0 is best, 2 worst."""
    wrong = outcome.probabilities
    wrong[np.arange(len(wrong)), outcome.labels] -= 1
    return float((wrong**2).sum(axis=1).mean())


def risk_coverage_curve(outcome: Outcome, points: int = 101) -> dict[str, Any]:
    """The error among the surest part of the images, for parts from small to all, and the mean over them (AURC).

    Geifman & El-Yaniv 2017 (arXiv 1705.08500).
    """
    order = np.argsort(-outcome.probabilities.max(axis=1), kind="stable")
    wrong = (outcome.predicted != outcome.labels)[order]
    risk = wrong.cumsum() / np.arange(1, len(wrong) + 1)
    at = np.unique(np.linspace(1, len(wrong), min(points, len(wrong))).round().astype(int))
    return {
        "coverage": (at / len(wrong)).tolist(),
        "risk": risk[at - 1].tolist(),
        "area": float(risk.mean()),
    }


def find_threshold(outcome: Outcome, wanted: float) -> dict[str, Any] | None:
    """The least probability at which the answered images are right in `wanted` of the cases, and their part.

    None where no threshold reaches it, or only one that answers next to nothing.
    """
    confidence = outcome.probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    right = (outcome.predicted == outcome.labels)[order].cumsum()
    n = np.arange(1, len(order) + 1)
    ends = np.append(confidence[order][1:] < confidence[order][:-1], True)  # images as sure as one another go together
    reached = np.flatnonzero(ends & (right / n >= wanted) & (n >= MIN_ANSWERED))
    if not len(reached):
        return None
    last = int(reached[-1])
    return {
        "wanted": wanted,
        "threshold": float(confidence[order][last]),
        "coverage": float(n[last] / len(order)),
        "accuracy": float(right[last] / n[last]),
    }


def find_thresholds(outcome: Outcome) -> list[dict[str, Any]]:
    """A row for each wanted accuracy that some threshold reaches."""
    return [row for wanted in TARGET_ACCURACIES if (row := find_threshold(outcome, wanted)) is not None]


def selective_accuracy(outcome: Outcome, threshold: float) -> dict[str, Any]:
    """What becomes of images when only those at least this sure are answered: part, accuracy, its 95 % interval."""
    kept = outcome.probabilities.max(axis=1) >= threshold
    n = int(kept.sum())
    right = int((outcome.predicted == outcome.labels)[kept].sum())
    return {
        "images": n,
        "coverage": n / len(kept),
        "accuracy": right / n if n else None,
        "interval": list(wilson_interval(right, n)) if n else None,
    }
