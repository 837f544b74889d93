"""Suspected label errors by confident learning (Northcutt, Jiang & Chuang 2021, arXiv 1911.00068)."""

from typing import Any

import numpy as np

from vitrail.evaluation.outcome import Outcome


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

    Images are ranked by the normalized margin: probability of the label minus probability of the suggested class. The
    model must not have been trained on these images.
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
