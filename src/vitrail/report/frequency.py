"""Accuracy by the frequency of the classes in training, and accuracy by group."""

from typing import Any

from vitrail.data.images import Images
from vitrail.evaluation import Evaluation

UNEQUAL = 3  # largest training class over smallest, from which the report has accuracy by class frequency
MAX_GROUPS = 30  # groups that are listed


def collect_frequency(per_class: list[dict[str, Any]], splits: dict[str, Images]) -> list[dict[str, Any]] | None:
    """Returns training images and recall of each class that has scored images, rare classes first.

    None without training images, and if the classes have about equally many.
    """
    if "train" not in splits:
        return None
    counts = splits["train"].count_by_class()
    if max(counts.values()) < UNEQUAL * max(min(counts.values()), 1):
        return None
    rows = [
        {
            "class": row["class"],
            "training_images": counts[row["class"]],
            "recall": row["recall"],
            "interval": row["recall_interval"],
        }
        for row in per_class
        if row["recall"] is not None
    ]
    return sorted(rows, key=lambda row: row["training_images"])


def collect_groups(evaluation: Evaluation) -> dict[str, Any] | None:
    """Returns how accuracy differs between groups, and the worst groups; None for images without groups."""
    if evaluation.groups is None:
        return None
    return {**evaluation.groups.summary(), "rows": evaluation.groups.rows()[:MAX_GROUPS]}
