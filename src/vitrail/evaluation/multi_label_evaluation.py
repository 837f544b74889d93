"""Scores of a classifier on images with several labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vitrail.evaluation.multi_label import (
    MultiLabelOutcome,
    ResampledAverages,
    average_scores,
    co_occurrence,
    per_class_scores,
    subset_accuracy_interval,
)
from vitrail.image_documents import UnlikeEvaluation
from vitrail.label_documents import LabelScores, MultiLabelDocument, MultiLabelScores

AVERAGE_NAMES = {"map": "mAP", "macro_f1": "macro F1", "micro_f1": "micro F1", "accuracy": "subset accuracy"}


def describe_label_averages(scores: Mapping[str, Any]) -> str:
    """Returns the averages of a summary with their intervals as text; subset accuracy: all labels of an image right."""
    return ", ".join(
        f"{title} {scores[name]:.4f} (95% interval {low:.4f} to {high:.4f})"
        for name, title in AVERAGE_NAMES.items()
        for low, high in [scores[f"{name}_interval"] or (float("nan"), float("nan"))]
    )


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """The outcome of a classifier on images with several labels, and its scores."""

    outcome: MultiLabelOutcome
    description: str = ""  # of the images
    temperature: float = 1.0  # the logits are divided by it
    optimistic: bool = False  # whether training selected weights or thresholds on these images
    unlike: UnlikeEvaluation | None = None  # how well outside images are told from these

    @property
    def images(self) -> int:
        """The number of scored images."""
        return len(self.outcome.labels)

    @property
    def accuracy(self) -> float:
        """The fraction of images whose labels are all right."""
        return self.outcome.accuracy

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy."""
        return subset_accuracy_interval(self.outcome)

    @cached_property
    def averages(self) -> ResampledAverages:
        """mAP, macro and micro F1 with intervals, and the resampled average precisions of each class."""
        return average_scores(self.outcome)

    @cached_property
    def per_class(self) -> dict[str, LabelScores]:
        """The scores of each class."""
        return per_class_scores(self.outcome, self.averages["per_class_map"])

    def summary(self) -> MultiLabelScores:
        """Returns the scores over all images.

        `accuracy` is the fraction of images whose labels are all right, `loss` the mean binary cross-entropy, `ece` the
        mean of the labels' calibration errors.
        """
        averages = self.averages
        scores: MultiLabelScores = {
            "task": "multi_label",
            "map": averages["map"],
            "macro_f1": averages["macro_f1"],
            "micro_f1": averages["micro_f1"],
            "map_interval": averages["map_interval"],
            "macro_f1_interval": averages["macro_f1_interval"],
            "micro_f1_interval": averages["micro_f1_interval"],
            "resamples": averages["resamples"],
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "loss": self.outcome.loss,
            "ece": float(np.mean([scores["ece"] for scores in self.per_class.values()])),
            "labels_per_image": float(self.outcome.labels.sum(axis=1).mean()),
            "temperature": self.temperature,
            "images": self.images,
            "unreadable": len(self.outcome.unreadable),  # skipped, not in `images`
        }
        if self.optimistic:
            scores["optimistic"] = True
        return scores

    def to_json(self) -> MultiLabelDocument:
        """Returns the summary, the scores of each class, co-occurrences, and the labels of each image."""
        outcome, classes = self.outcome, self.outcome.classes
        rows = zip(outcome.paths, outcome.labels, outcome.predicted, outcome.probabilities, strict=True)
        document: MultiLabelDocument = {
            **self.summary(),  # type: ignore[typeddict-item]  # mypy: `unlike` could be in it
            "data": self.description,
            "per_class": self.per_class,
            "co_occurrence": {"classes": list(classes), "images": co_occurrence(outcome.labels).tolist()},
            "unreadable_files": [{"path": error.name, "error": error.reason} for error in outcome.unreadable],
            "predictions": [
                {
                    "path": path,
                    "true": [classes[i] for i in np.flatnonzero(labels)],
                    "labels": [classes[i] for i in np.flatnonzero(predicted)],
                    "probabilities": dict(zip(classes, probabilities.tolist(), strict=True)),
                }
                for path, labels, predicted, probabilities in rows
            ],
        }
        if self.unlike:
            document["unlike"] = self.unlike
        return document
