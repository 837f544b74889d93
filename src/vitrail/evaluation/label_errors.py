"""Suspected label errors: confident learning (Northcutt, Jiang & Chuang 2021, arXiv 1911.00068), and when to trust it.

Where a model and a label disagree, one of them is wrong. The mistakes of a model become rare as its confidence grows;
wrong labels do not. A fit of both tells them apart, and below a stated accuracy of the model nothing is listed
(docs/statistics.md has the simulation behind the rule).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitrail.evaluation.outcome import Outcome

MIN_ACCURACY = 0.8  # with a less accurate model most suspects are mistakes of the model
MIN_IMAGES = 100
MIN_LIKELIHOOD_RATIO = 2.706  # 95% quantile of the test that no label is wrong: half chi-squared, one degree of freedom
MIN_PROBABILITY = 0.5  # that the label, not the model, is wrong


@dataclass(frozen=True)
class SuspectedLabels:
    """The suspects, or the reason why none is listed; `wrong_fraction` is the estimated fraction of wrong labels."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None
    wrong_fraction: float | None = None


@dataclass(frozen=True)
class DisagreementFit:
    """Two explanations of the disagreements of model and labels, fitted together.

    A prediction of log-odds x is right with probability sigmoid(offset + slope * x), and a label is wrong with
    probability `wrong_fraction` whatever x is. `likelihood_ratio` compares this with no wrong labels at all.
    """

    offset: float
    slope: float
    wrong_fraction: float
    likelihood_ratio: float

    def label_is_wrong(self, log_odds: np.ndarray) -> np.ndarray:
        """Returns the probability that the label is wrong where model and label disagree, (n,)."""
        model_is_wrong = 1 - _sigmoid(self.offset + self.slope * log_odds)
        probability: np.ndarray = self.wrong_fraction / (
            self.wrong_fraction + (1 - self.wrong_fraction) * model_is_wrong + 1e-300
        )
        return probability


def suspect_labels(outcome: Outcome) -> SuspectedLabels:
    """Returns the labels that are more likely wrong than the model, the strongest evidence first.

    The model must not have been trained on these images. Nothing is listed without `MIN_IMAGES` images and
    `MIN_ACCURACY`, and without evidence that some labels are wrong.
    """
    n = len(outcome.labels)
    if n < MIN_IMAGES:
        return SuspectedLabels(reason=f"{n} images are too few to tell wrong labels from mistakes of the model")
    if outcome.accuracy < MIN_ACCURACY:
        return SuspectedLabels(
            reason=f"the model's accuracy is {outcome.accuracy:.1%}; below {MIN_ACCURACY:.0%} most of the labels that "
            "a model doubts are right"
        )
    if outcome.accuracy == 1:
        return SuspectedLabels(reason="model and labels agree on all images", wrong_fraction=0.0)
    fit = fit_disagreements(outcome)
    if fit.likelihood_ratio < MIN_LIKELIHOOD_RATIO:
        return SuspectedLabels(
            reason="the mistakes of the model explain all disagreements with the labels", wrong_fraction=0.0
        )
    probability = fit.label_is_wrong(_log_odds(outcome))
    rows = [row for row in find_label_errors(outcome) if probability[row["image"]] > MIN_PROBABILITY]
    for row in rows:
        row["wrong_probability"] = float(probability[row["image"]])
    reason = None if rows else "no single label is more likely wrong than the model"
    return SuspectedLabels(rows, reason, fit.wrong_fraction)


def fit_disagreements(outcome: Outcome) -> DisagreementFit:
    """Returns the maximum likelihood fit of whether model and label agree, by the log-odds of the prediction."""
    from scipy.optimize import minimize

    log_odds, agrees = _log_odds(outcome), outcome.correct

    def loss(offset: float, log_slope: float, wrong: float) -> float:
        agreement = np.clip((1 - wrong) * _sigmoid(offset + np.exp(log_slope) * log_odds), 1e-12, 1 - 1e-12)
        return float(-np.where(agrees, np.log(agreement), np.log1p(-agreement)).sum())

    options = {"xatol": 1e-3, "fatol": 1e-3}
    clean = minimize(lambda p: loss(p[0], p[1], 0.0), [0.0, 0.0], method="Nelder-Mead", options=options)
    noisy = minimize(
        lambda p: loss(p[0], p[1], _sigmoid(p[2])), [*clean.x, -4.0], method="Nelder-Mead", options=options
    )
    offset, log_slope, wrong = noisy.x
    return DisagreementFit(
        float(offset), float(np.exp(log_slope)), float(_sigmoid(wrong)), float(2 * (clean.fun - noisy.fun))
    )


def confident_classes(outcome: Outcome) -> np.ndarray:
    """Returns for each image the class that it confidently belongs to, or -1: (n,).

    An image belongs confidently to a class if the class's probability is at least the mean probability of that class
    over the images with that label (equations 1 and 2). Among several such classes the most probable is returned.
    """
    probabilities = outcome.probabilities
    thresholds = np.full(len(outcome.classes), np.inf)
    for label in np.unique(outcome.labels):
        thresholds[label] = probabilities[outcome.labels == label, label].mean()
    is_confident = probabilities >= thresholds
    best: np.ndarray = np.where(is_confident, probabilities, -1.0).argmax(axis=1)
    return np.where(is_confident.any(axis=1), best, -1)


def find_label_errors(outcome: Outcome) -> list[dict[str, Any]]:
    """Returns the images that confidently belong to another class than their label, the strongest evidence first.

    Images are ranked by the normalized margin: probability of the label minus probability of the suggested class. This
    is confident learning alone; `suspect_labels` decides which of them to list.
    """
    suggested = confident_classes(outcome)
    probabilities = outcome.probabilities
    suspects = np.flatnonzero((suggested >= 0) & (suggested != outcome.labels))
    margin = probabilities[suspects, outcome.labels[suspects]] - probabilities[suspects, suggested[suspects]]
    return [
        {
            "image": int(i),
            "label": outcome.classes[outcome.labels[i]],
            "suggested": outcome.classes[suggested[i]],
            "label_probability": float(probabilities[i, outcome.labels[i]]),
            "suggested_probability": float(probabilities[i, suggested[i]]),
        }
        for i in suspects[np.argsort(margin, kind="stable")]
    ]


def _log_odds(outcome: Outcome) -> np.ndarray:
    """Returns the log-odds of each prediction, (n,)."""
    confidence = np.clip(outcome.confidence, 1e-9, 1 - 1e-9)
    log_odds: np.ndarray = np.log(confidence / (1 - confidence))
    return log_odds


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))
