"""Suspected label errors, by confident learning (Northcutt, Jiang & Chuang 2021, arXiv 1911.00068)."""

from typing import Any

import numpy as np

from vitrail.evaluation.outcome import Outcome


def confident_classes(outcome: Outcome) -> np.ndarray:
    """For each image the class it confidently belongs to, or -1: (n,).

    A class is confident for an image when its probability is at least the class's threshold, the mean probability of
    the class over the images that are labelled with it (equations 1 and 2); of several the most probable counts.
    """
    probabilities = outcome.probabilities
    thresholds = np.full(len(outcome.classes), np.inf)
    for number in np.unique(outcome.labels):
        thresholds[number] = probabilities[outcome.labels == number, number].mean()
    confident = probabilities >= thresholds
    best: np.ndarray = np.where(confident, probabilities, -1.0).argmax(axis=1)
    return np.where(confident.any(axis=1), best, -1)


def find_label_errors(outcome: Outcome) -> list[dict[str, Any]]:
    """Images that confidently belong to another class than their label says, the clearest first.

    Ranked by the normalised margin: the label's probability less that of the other class. The probabilities must be
    of images that the model was not trained on.
    """
    found = confident_classes(outcome)
    probabilities = outcome.probabilities
    suspects = np.flatnonzero((found >= 0) & (found != outcome.labels))
    margin = probabilities[suspects, outcome.labels[suspects]] - probabilities[suspects, found[suspects]]
    return [
        {
            "image": int(i),
            "label": outcome.classes[outcome.labels[i]],
            "suggested": outcome.classes[found[i]],
            "label_probability": float(probabilities[i, outcome.labels[i]]),
            "suggested_probability": float(probabilities[i, found[i]]),
        }
        for i in suspects[np.argsort(margin, kind="stable")]
    ]
