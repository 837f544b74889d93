"""Outcome -> numbers."""

from typing import Any

import numpy as np

from vitrail.evaluation.outcome import Outcome
from vitrail.intervals import bootstrap_counts, percentile_interval, wilson_interval


def expected_calibration_error(outcome: Outcome, bins: int = 15) -> float:
    """Expected calibration error (Naeini et al. 2015): mean gap of confidence and accuracy over equal-width bins."""
    rows = reliability_bins(outcome, bins)
    return sum(row["images"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / len(outcome.labels)


def reliability_bins(outcome: Outcome, bins: int = 15) -> list[dict[str, Any]]:
    """For each bin of confidence with images in it: how many, their mean confidence and their accuracy."""
    confidence = outcome.probabilities.max(axis=1)
    correct = outcome.predicted == outcome.labels
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = []
    for number in range(bins):
        inside = places == number
        n = int(inside.sum())
        if n:
            rows.append(
                {
                    "from": number / bins,
                    "to": (number + 1) / bins,
                    "images": n,
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(correct[inside].mean()),
                    "interval": list(wilson_interval(int(correct[inside].sum()), n)),
                }
            )
    return rows


def top_k_accuracy(outcome: Outcome, k: int = 5) -> float:
    """The part of the images whose true class is among the `k` most probable."""
    k = min(k, len(outcome.classes))
    best = np.argpartition(-outcome.logits, k - 1, axis=1)[:, :k]
    return float((best == outcome.labels[:, None]).any(axis=1).mean())


def confusion_matrix(outcome: Outcome) -> np.ndarray:
    """Images by true class (rows) and predicted class (columns), (Y, Y)."""
    from sklearn.metrics import confusion_matrix

    matrix: np.ndarray = confusion_matrix(outcome.labels, outcome.predicted, labels=np.arange(len(outcome.classes)))
    return matrix


def per_class_scores(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """Precision, recall, F1 and number of images for each class; None where a class was not seen or not predicted."""
    from sklearn.metrics import precision_recall_fscore_support

    numbers = np.arange(len(outcome.classes))
    scores = precision_recall_fscore_support(outcome.labels, outcome.predicted, labels=numbers, zero_division=np.nan)
    return {
        name: {
            "precision": _or_none(precision),
            "recall": _or_none(recall),
            "f1": _or_none(f1),
            "images": int(images),
        }
        for name, precision, recall, f1, images in zip(outcome.classes, *scores, strict=True)
    }


def most_confused_pairs(matrix: np.ndarray, classes: tuple[str, ...], most: int = 10) -> list[dict[str, Any]]:
    """The pairs (true, predicted) that are mistaken most often, with the number of images."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    return [{"true": classes[i], "predicted": classes[j], "images": int(wrong[i, j])} for i, j in pairs if wrong[i, j]]


def bootstrap_scores(outcome: Outcome, times: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Balanced accuracy, macro-F1 and every class's F1, each with its 95 % percentile bootstrap interval.

    Images are drawn with replacement `times` times; drawing images is drawing cells of the confusion matrix.
    Classes without an image count for nothing.
    """
    classes = len(outcome.classes)
    cells, counts = np.unique(outcome.labels * classes + outcome.predicted, return_counts=True)
    rows, columns = np.divmod(cells, classes)
    drawn = bootstrap_counts(counts, np.random.Generator(np.random.Philox(seed)), times)
    named = ("balanced_accuracy", "macro_f1")
    found = [_averages(rows, columns, draw, classes) for draw in (counts, *drawn)]
    over = np.array([[each[name] for name in named] for each in found])
    f1 = np.array([each["f1"] for each in found])
    low, high = percentile_interval(over[1:])
    f1_low, f1_high = percentile_interval(f1[1:])
    return {
        **{name: float(over[0, i]) for i, name in enumerate(named)},
        **{f"{name}_interval": [float(low[i]), float(high[i])] for i, name in enumerate(named)},
        "f1_intervals": {name: [float(f1_low[i]), float(f1_high[i])] for i, name in enumerate(outcome.classes)},
    }


def _averages(rows: np.ndarray, columns: np.ndarray, counts: np.ndarray, classes: int) -> dict[str, Any]:
    """Mean recall and F1 over the classes that have images, and each F1, from (true, predicted, images)."""
    true = np.bincount(rows, counts, classes)
    predicted = np.bincount(columns, counts, classes)
    right = np.bincount(rows, counts * (rows == columns), classes)
    seen = true > 0
    f1 = 2 * right / np.maximum(true + predicted, 1)
    return {"balanced_accuracy": (right[seen] / true[seen]).mean(), "macro_f1": f1[seen].mean(), "f1": f1}


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
