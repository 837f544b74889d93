"""The headline, the classes, and what is taken for what."""

from typing import Any

import numpy as np

from vitrail.evaluation.metrics import bootstrap_scores, confusion_matrix, most_confused_pairs, per_class_scores
from vitrail.evaluation.outcome import Outcome
from vitrail.intervals import wilson_interval
from vitrail.report.sprite_sheets import ThumbnailIndex
from vitrail.report.subject import SampleSizes, Subject

MATRIX_CLASSES = 30  # above it a matrix is a carpet: the largest confusions are listed instead
LISTED = 60


def scores(subject: Subject) -> dict[str, Any]:
    """The headline and each class, with intervals; the classes mistaken most often for one another."""
    evaluation = subject.evaluation
    outcome = evaluation.outcome
    resampled = bootstrap_scores(outcome)
    f1_intervals = resampled.pop("f1_intervals")
    matrix = confusion_matrix(outcome)
    right = np.diag(matrix)
    rows = []
    for i, (name, row) in enumerate(per_class_scores(outcome).items()):
        true, predicted = int(matrix[i].sum()), int(matrix[:, i].sum())
        rows.append(
            {
                "class": name,
                **row,
                "recall_interval": list(wilson_interval(int(right[i]), true)) if true else None,
                "precision_interval": list(wilson_interval(int(right[i]), predicted)) if predicted else None,
                "f1_interval": f1_intervals[name] if true else None,
            }
        )
    return {
        "summary": evaluation.summary() | resampled,
        "per_class": rows,
        "most_confused": most_confused_pairs(matrix, outcome.classes),
    }


def confused(outcome: Outcome, show: ThumbnailIndex, depth: SampleSizes) -> dict[str, Any]:
    """The matrix and, for each of its cells, the images to show: the surest mistakes, and the least sure hits.

    Mistakes get their thumbnails first, the rarest cells before the frequent ones.
    """
    matrix = confusion_matrix(outcome)
    few = len(matrix) <= MATRIX_CLASSES
    cells = [(int(i), int(j)) for i, j in zip(*np.nonzero(matrix), strict=True) if few or i != j]
    if not few:
        cells = sorted(cells, key=lambda cell: -int(matrix[cell]))[:LISTED]
    confidence = outcome.probabilities.max(axis=1)
    shown: dict[tuple[int, int], list[int]] = {}
    for i, j in sorted(cells, key=lambda cell: (cell[0] == cell[1], int(matrix[cell]))):
        members = np.flatnonzero((outcome.labels == i) & (outcome.predicted == j))
        order = np.argsort(confidence[members] * (1 if i == j else -1), kind="stable")
        numbers = [show(k) for k in members[order][: depth.by_cell]]
        shown[i, j] = [number for number in numbers if number is not None]
    return {
        "order": neighbourly(matrix) if few else list(range(len(matrix))),
        "matrix": matrix.tolist() if few else None,
        "cells": [{"true": i, "predicted": j, "images": int(matrix[i, j]), "shown": shown[i, j]} for i, j in cells],
    }


def neighbourly(matrix: np.ndarray) -> list[int]:
    """The classes in an order in which those that are confused stand together: average linkage, best leaf order."""
    n = len(matrix)
    if n < 4:
        return list(range(n))
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    parts = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    likeness = (parts + parts.T) / 2
    distance = 1 - likeness
    np.fill_diagonal(distance, 0)
    condensed = squareform(distance, checks=False)
    return [int(i) for i in leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))]
