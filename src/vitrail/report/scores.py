"""The summary, the scores of each class, and the confusion matrix with example images."""

from typing import Any

import numpy as np

from vitrail.evaluation import Evaluation, Outcome
from vitrail.evaluation.confusion import order_by_confusion
from vitrail.evaluation.metrics import confusion_matrix, most_confused_pairs, per_class_scores
from vitrail.intervals import wilson_interval
from vitrail.report.verdicts import compare_classes

MAX_MATRIX_CLASSES = 30  # with more classes the most frequent confusions are listed instead of a matrix
MAX_LISTED_CELLS = 60

Cell = tuple[int, int]  # true class, predicted class


def collect_scores(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the summary, the scores of each class with intervals, and the most confused pairs of classes."""
    outcome = evaluation.outcome
    f1_intervals = evaluation.averages["f1_intervals"]
    matrix = confusion_matrix(outcome)
    correct = np.diag(matrix)
    rows = []
    for i, (name, scores) in enumerate(per_class_scores(outcome).items()):
        true, predicted = int(matrix[i].sum()), int(matrix[:, i].sum())
        rows.append(
            {
                "class": name,
                **scores,
                "recall_interval": list(wilson_interval(int(correct[i]), true)) if true else None,
                "precision_interval": list(wilson_interval(int(correct[i]), predicted)) if predicted else None,
                "f1_interval": f1_intervals[name] if true else None,
            }
        )
    return {
        "summary": evaluation.summary(),
        "per_class": rows,
        "class_comparison": compare_classes(rows),
        "most_confused": most_confused_pairs(matrix, outcome.classes),
    }


def collect_confusion(outcome: Outcome, max_examples: int) -> dict[str, Any]:
    """Returns the confusion matrix and its cells, each with at most `max_examples` image indices.

    The examples are the most confident mistakes and the least confident correct predictions.
    """
    matrix = confusion_matrix(outcome)
    fits_matrix = len(matrix) <= MAX_MATRIX_CLASSES
    cells = [(int(i), int(j)) for i, j in zip(*np.nonzero(matrix), strict=True) if fits_matrix or i != j]
    if not fits_matrix:
        cells = sorted(cells, key=lambda cell: -int(matrix[cell]))[:MAX_LISTED_CELLS]
    return {
        "order": order_by_confusion(matrix) if fits_matrix else list(range(len(matrix))),
        "matrix": matrix.tolist() if fits_matrix else None,
        "cells": [
            {
                "true": true,
                "predicted": predicted,
                "images": int(matrix[true, predicted]),
                "examples": choose_examples(outcome, true, predicted, max_examples),
            }
            for true, predicted in cells
        ],
    }


def choose_examples(outcome: Outcome, true: int, predicted: int, max_examples: int) -> list[int]:
    """Returns images of a cell: the most confident mistakes, or the least confident correct predictions."""
    members = np.flatnonzero((outcome.labels == true) & (outcome.predicted == predicted))
    sign = 1 if true == predicted else -1
    order = np.argsort(outcome.confidence[members] * sign, kind="stable")
    examples: list[int] = members[order][:max_examples].tolist()
    return examples
