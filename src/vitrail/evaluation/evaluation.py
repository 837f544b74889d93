"""What is said of a classifier: the numbers, image by image where asked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.classifier import BaseClassifier
from vitrail.data import Images
from vitrail.data.scoring import OPTIMISTIC_NOTE, SCORING_ORDER, ScoredImages, open_images_to_score, open_known_splits
from vitrail.evaluation.calibration import brier_score
from vitrail.evaluation.metrics import (
    confusion_matrix,
    expected_calibration_error,
    most_confused_pairs,
    per_class_scores,
    top_k_accuracy,
)
from vitrail.evaluation.outcome import Outcome, compute_outcome
from vitrail.intervals import wilson_interval


@dataclass(frozen=True)
class Evaluation:
    """The numbers of a classifier on labelled images; `to_json` has them all."""

    outcome: Outcome
    description: str = ""  # which images these are, in words
    temperature: float = 1.0  # what the logits were divided by
    optimistic: bool = False  # whether training selected weights or a hyperparameter on these images

    @property
    def images(self) -> int:
        """How many images were scored."""
        return len(self.outcome.labels)

    @property
    def accuracy(self) -> float:
        """The part of the images whose most probable class is the true one."""
        return self.outcome.accuracy

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        return wilson_interval(int((self.outcome.predicted == self.outcome.labels).sum()), self.images)

    def summary(self) -> dict[str, Any]:
        """The headline numbers; `optimistic` is among them where it is true."""
        return {
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "top5": top_k_accuracy(self.outcome),
            "loss": self.outcome.loss,
            "ece": expected_calibration_error(self.outcome),
            "nll": self.outcome.loss,
            "brier": brier_score(self.outcome),
            "temperature": self.temperature,
            "images": self.images,
            "unreadable": len(self.outcome.unreadable),  # with `images` as many as were listed
            **({"optimistic": True} if self.optimistic else {}),
        }

    def to_json(self) -> dict[str, Any]:
        """Everything: the summary, per class, the confusion matrix, and every image's prediction."""
        matrix = confusion_matrix(self.outcome)
        probabilities = self.outcome.probabilities
        classes = self.outcome.classes
        return {
            **self.summary(),
            "data": self.description,
            "per_class": per_class_scores(self.outcome),
            "confusion": {"classes": list(classes), "matrix": matrix.tolist()},
            "most_confused": most_confused_pairs(matrix, classes),
            "unreadable_files": [{"path": error.name, "error": error.reason} for error in self.outcome.unreadable],
            "predictions": [
                {"path": name, "true": classes[label], "label": classes[best], "probability": float(p[best])}
                for name, label, best, p in zip(
                    self.outcome.paths, self.outcome.labels, self.outcome.predicted, probabilities, strict=True
                )
            ],
        }


def describe_scored_images(scores: dict[str, Any]) -> str:
    """How many images gave these scores, and what is to be said where they are optimistic."""
    return f"{scores['images']} images" + (f", {OPTIMISTIC_NOTE}" if scores.get("optimistic") else "")


def open_scored_images(classifier: BaseClassifier, data: str | Path, skip_unreadable: bool = False) -> ScoredImages:
    """Opens the labeled images at a DATA address that this classifier should be scored on.

    Raises `VitrailError` naming a class that the classifier does not know, `UsageError` where it has no classes at all.
    """
    classifier.require_classes()
    trained_on = classifier.origin.get("data", {})
    channels = classifier.preprocess.channels
    return open_images_to_score(data, classifier.classes, channels, trained_on, missing_ok=skip_unreadable)


def open_splits(
    classifier: BaseClassifier, data: str | Path, skip_unreadable: bool = False
) -> tuple[str, dict[str, Images]]:
    """The name of the split that is scored, and every split of the data, divided as training did."""
    trained_on = classifier.origin.get("data", {})
    parts = open_known_splits(data, classifier.classes, classifier.preprocess.channels, trained_on, skip_unreadable)
    return next(name for name in SCORING_ORDER if name in parts), parts


def evaluate(
    classifier: BaseClassifier,
    images: Images,
    *,
    description: str = "",
    optimistic: bool = False,
    batch_size: int = 256,
    workers: int | None = None,
    tick: Callable[[int], object] = lambda n: None,
    skip_unreadable: bool = False,
) -> Evaluation:
    """The numbers of `classifier` on labelled images.

    Raises `ImageError` naming a file that cannot be read, or with `skip_unreadable` counts it.
    """
    outcome = compute_outcome(
        classifier, images, batch_size=batch_size, workers=workers, tick=tick, skip_unreadable=skip_unreadable
    )
    return Evaluation(outcome, description or f"{len(images)} images", classifier.temperature, optimistic)
