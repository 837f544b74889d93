"""Scores of a classifier on labeled images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vitrail.classifier import BaseClassifier
from vitrail.data.images import Images
from vitrail.data.python_data import Data
from vitrail.data.scoring import OPTIMISTIC_NOTE, SCORING_ORDER, ScoredImages, open_images_to_score, open_known_splits
from vitrail.documents import Averages, EvaluationDocument, Scores
from vitrail.evaluation.calibration_error import measure_calibration_error
from vitrail.evaluation.group_scores import GroupScores, score_groups
from vitrail.evaluation.metrics import (
    AVERAGES,
    TOP_K,
    accuracy_interval,
    average_scores,
    brier_score,
    check_metrics,
    compute_metrics,
    confusion_matrix,
    most_confused_pairs,
    per_class_scores,
    top_k_accuracy,
)
from vitrail.evaluation.outcome import Outcome, compute_outcome
from vitrail.image_documents import UnlikeEvaluation
from vitrail.weights.origin import read_origin

AVERAGE_NAMES = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a classifier on labeled images, and its scores."""

    outcome: Outcome
    description: str = ""  # of the images
    temperature: float = 1.0  # the logits are divided by it
    optimistic: bool = False  # whether training selected weights or a hyperparameter on these images
    metrics: dict[str, float] = field(default_factory=dict)  # requested by name
    unlike: UnlikeEvaluation | None = None  # how well outside images are told from these

    @property
    def images(self) -> int:
        """The number of scored images."""
        return len(self.outcome.labels)

    @property
    def accuracy(self) -> float:
        return self.outcome.accuracy

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy; over groups instead of images, if the images have groups."""
        return accuracy_interval(self.outcome)

    @cached_property
    def groups(self) -> GroupScores | None:
        """The scores of the groups; None for images without groups."""
        return None if self.outcome.groups is None else score_groups(self.outcome.groups, self.outcome.correct)

    @cached_property
    def averages(self) -> Averages:
        """Balanced accuracy, macro F1 and the F1 of every class, each with its 95% interval."""
        return average_scores(self.outcome)

    def summary(self) -> Scores:
        """Returns the scores over all images. Balanced accuracy and macro F1 count all classes alike.

        It has `top5` only with more than five classes, `groups` only if the images have groups, and `optimistic` only
        if that is true. `loss` is the negative log-likelihood; `ece_corrected` is the calibration error without its
        bias.
        """
        calibration, averages = measure_calibration_error(self.outcome), self.averages
        scores: Scores = {
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "balanced_accuracy": averages["balanced_accuracy"],
            "balanced_accuracy_interval": averages["balanced_accuracy_interval"],
            "macro_f1": averages["macro_f1"],
            "macro_f1_interval": averages["macro_f1_interval"],
            "loss": self.outcome.loss,
            "ece": calibration.ece,
            "ece_corrected": calibration.corrected,
            "ece_interval": list(calibration.interval),
            "brier": brier_score(self.outcome),
            "temperature": self.temperature,
            "images": self.images,
            "unreadable": len(self.outcome.unreadable),  # skipped, not in `images`
        }
        if len(self.outcome.classes) > TOP_K:
            scores["top5"] = top_k_accuracy(self.outcome)
        if self.groups:
            scores["groups"] = self.groups.summary()
        if self.metrics:
            scores["metrics"] = self.metrics
        if self.optimistic:
            scores["optimistic"] = True
        return scores

    def to_json(self) -> EvaluationDocument:
        """Returns the summary, the scores of each class, the confusion matrix, and the prediction of each image."""
        outcome, classes = self.outcome, self.outcome.classes
        matrix = confusion_matrix(outcome)
        predictions = zip(outcome.paths, outcome.labels, outcome.predicted, outcome.probabilities, strict=True)
        document: EvaluationDocument = {
            **self.summary(),  # type: ignore[typeddict-item]  # mypy: `per_group` could be in it
            "data": self.description,
            "per_class": per_class_scores(outcome),
            "confusion": {"classes": list(classes), "matrix": matrix.tolist()},
            "most_confused": most_confused_pairs(matrix, classes),
            "unreadable_files": [{"path": error.name, "error": error.reason} for error in outcome.unreadable],
            "predictions": [
                {
                    "path": path,
                    "true": classes[true],
                    "label": classes[predicted],
                    "probability": float(probabilities[predicted]),
                }
                for path, true, predicted, probabilities in predictions
            ],
        }
        if self.groups:
            document["per_group"] = self.groups.rows()
        if self.unlike:
            document["unlike"] = self.unlike
        return document


def describe_averages(scores: Mapping[str, Any]) -> str:
    """Returns balanced accuracy and macro F1 of a summary with their intervals as text."""
    parts = []
    for name in AVERAGES:
        low, high = scores[f"{name}_interval"]
        parts.append(f"{AVERAGE_NAMES[name]} {scores[name]:.4f} ({low:.4f} to {high:.4f})")
    return ", ".join(parts)


def describe_scored_images(scores: Mapping[str, Any]) -> str:
    """Returns the number of images of a summary as text, with a note if the scores are optimistic."""
    return f"{scores['images']} images" + (f", {OPTIMISTIC_NOTE}" if scores.get("optimistic") else "")


def open_scored_images(
    classifier: BaseClassifier, data: Data, skip_unreadable: bool = False, group_pattern: str | None = None
) -> ScoredImages:
    """Opens the labeled images at a DATA address on which to score this classifier.

    `group_pattern` finds their groups in their names.

    Raises `VitrailError` for a class that the classifier lacks, and `UsageError` if it has no classes.
    """
    classifier.require_classes()
    trained_on = read_origin(classifier.origin).get("data", {})
    channels = classifier.preprocess.source_channels
    return open_images_to_score(
        data, classifier.classes, channels, trained_on, skip_unreadable, classifier.task, group_pattern
    )


def open_splits(
    classifier: BaseClassifier, data: Data, skip_unreadable: bool = False, group_pattern: str | None = None
) -> tuple[str, dict[str, Images]]:
    """Returns the name of the scored split, and all splits of the data, divided as in training."""
    trained_on = read_origin(classifier.origin).get("data", {})
    channels = classifier.preprocess.source_channels
    splits = open_known_splits(
        data, classifier.classes, channels, trained_on, skip_unreadable, classifier.task, group_pattern
    )
    return next(name for name in SCORING_ORDER if name in splits), splits


def evaluate(
    classifier: BaseClassifier,
    images: Images,
    *,
    description: str = "",
    optimistic: bool = False,
    batch_size: int = 256,
    workers: int | None = None,
    on_batch: Callable[[int], object] = lambda images: None,
    skip_unreadable: bool = False,
    metrics: Sequence[str] = (),
) -> Evaluation:
    """Returns the scores of `classifier` on labeled images. `on_batch` receives the number of images of each batch.

    `metrics` are names of `METRICS` to compute besides.

    Raises `ImageError` for an unreadable image; with `skip_unreadable` such images are skipped and counted.
    """
    check_metrics(metrics)
    outcome = compute_outcome(
        classifier, images, batch_size=batch_size, workers=workers, on_batch=on_batch, skip_unreadable=skip_unreadable
    )
    scores = compute_metrics(outcome, metrics)
    return Evaluation(outcome, description or f"{len(images)} images", classifier.temperature, optimistic, scores)
