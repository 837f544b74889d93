"""The outcome and the scores of predicted numbers. Shapes: n images, Y numbers per image, R resamples."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from vitrail.data.labels import factorize
from vitrail.errors import UsageError
from vitrail.evaluation.multi_label import CHUNK_VALUES, count_resamples
from vitrail.evaluation.outcome import ImageLogits
from vitrail.image_documents import UnlikeEvaluation
from vitrail.intervals import bootstrap_counts, percentile_interval, widen_for_groups
from vitrail.number_documents import ErrorsOfNumber, NumberDocument, NumberScores

BOUNDS = {  # of the intervals
    "mae": (0.0, float("inf")),
    "rmse": (0.0, float("inf")),
    "r2": (-float("inf"), 1.0),
    "mean_error": (-float("inf"), float("inf")),
}
Draws = dict[str, np.ndarray]  # score -> (R, Y)


class NumberOutcome(ImageLogits):
    """The true numbers, labels (n, Y), and the predicted ones, logits (n, Y); `classes` are their names."""

    @property
    def predicted(self) -> np.ndarray:
        """The predicted numbers, (n, Y)."""
        return self.logits

    @cached_property
    def errors(self) -> np.ndarray:
        """Predicted minus true numbers, (n, Y)."""
        errors: np.ndarray = self.logits - self.labels
        return errors

    @cached_property
    def relative_errors(self) -> np.ndarray:
        """The absolute errors in standard deviations of the true numbers, (n, Y); of a constant number as they are."""
        deviations = self.labels.std(axis=0)
        relative: np.ndarray = np.abs(self.errors) / np.where(deviations > 0, deviations, 1.0)
        return relative

    @cached_property
    def losses(self) -> np.ndarray:
        """The squared error of each image over the variance of the true numbers, averaged over numbers: (n,)."""
        variances = self.labels.var(axis=0)
        losses: np.ndarray = (self.errors**2 / np.where(variances > 0, variances, 1.0)).mean(axis=1)
        return losses

    @property
    def loss(self) -> float:
        """The mean of `losses`: the part of the variance that is not explained."""
        return float(self.losses.mean())

    @cached_property
    def mae(self) -> float:
        """The mean absolute error, averaged over numbers."""
        return float(np.abs(self.errors).mean())

    @cached_property
    def r2(self) -> float:
        """The coefficient of determination, averaged over numbers."""
        return float(score_numbers(self, np.ones((1, len(self.labels))))["r2"].mean())


def score_numbers(outcome: NumberOutcome, weights_RN: np.ndarray) -> Draws:
    """Returns the scores of each number for each row of weights of the images, as scikit-learn computes them.

    R2 of true numbers that are all the same is 1 if the predictions are right, else 0.
    """
    images_R1 = weights_RN.sum(axis=1, keepdims=True)
    centered_NY = outcome.labels - outcome.labels.mean(axis=0)  # the variance is then no difference of large numbers
    squares_RY = weights_RN @ outcome.errors**2
    variation_RY = weights_RN @ centered_NY**2 - (weights_RN @ centered_NY) ** 2 / images_R1
    varies_RY = variation_RY > 1e-12 * np.maximum(weights_RN @ centered_NY**2, np.finfo(float).tiny)
    unexplained_RY = squares_RY / np.where(varies_RY, variation_RY, 1.0)
    return {
        "mae": weights_RN @ np.abs(outcome.errors) / images_R1,
        "rmse": np.sqrt(squares_RY / images_R1),
        "r2": np.where(varies_RY, 1 - unexplained_RY, np.where(squares_RY > 0, 0.0, 1.0)),
        "mean_error": weights_RN @ outcome.errors / images_R1,
    }


def resample_numbers(outcome: NumberOutcome, seed: int = 0) -> Draws:
    """Returns the scores of each number for resamples of the images, or of their groups."""
    n, resamples = len(outcome.labels), count_resamples(outcome)
    units = np.arange(n) if outcome.groups is None else factorize(outcome.groups)[1]
    generator = np.random.Generator(np.random.Philox(seed))
    size = max(1, CHUNK_VALUES // n)
    chunks = []
    for start in range(0, resamples, size):
        drawn = bootstrap_counts(np.ones(units.max() + 1), generator, min(size, resamples - start))
        chunks.append(score_numbers(outcome, drawn[:, units].astype(float)))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in BOUNDS}


def find_interval(outcome: NumberOutcome, name: str, value: float, drawn_R: np.ndarray) -> list[float] | None:
    """Returns the 95% interval of a score from its resamples; None if there is one image, or one group."""
    units = len(outcome.labels if outcome.groups is None else set(outcome.groups))
    if units < 2:
        return None
    low, high = (float(end) for end in percentile_interval(drawn_R))
    if outcome.groups is None:
        return [low, high]
    return list(widen_for_groups((low, high), value, units, bounds=BOUNDS[name]))


@dataclass(frozen=True)
class NumberEvaluation:
    """The outcome of a model on images with numbers, and its scores."""

    outcome: NumberOutcome
    description: str = ""  # of the images
    temperature: float = 1.0  # numbers have none
    optimistic: bool = False  # whether training selected weights on these images
    unlike: UnlikeEvaluation | None = None  # always None: outside images are told by probabilities

    @property
    def images(self) -> int:
        """The number of scored images."""
        return len(self.outcome.labels)

    @property
    def accuracy(self) -> float:
        """Raises `UsageError`: predicted numbers are never right or wrong."""
        raise UsageError("predicted numbers have no accuracy", "use summary()['mae'] or summary()['r2']")

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """Raises `UsageError`, as `accuracy` does."""
        raise UsageError("predicted numbers have no accuracy", "use summary()['mae_interval']")

    @cached_property
    def scores(self) -> Draws:
        """The scores of each number, (1, Y)."""
        return score_numbers(self.outcome, np.ones((1, self.images)))

    @cached_property
    def resampled(self) -> Draws:
        """The scores of each number for resamples, (R, Y)."""
        return resample_numbers(self.outcome)

    def with_intervals(self, names: tuple[str, ...], columns: slice | list[int]) -> dict[str, Any]:
        """Returns these scores, averaged over some numbers, with their intervals."""
        document: dict[str, Any] = {}
        for name in names:
            value = float(self.scores[name][0, columns].mean())
            document[name] = value
            drawn_R = self.resampled[name][:, columns].mean(axis=1)
            document[f"{name}_interval"] = find_interval(self.outcome, name, value, drawn_R)
        median_Y = np.median(self.outcome.labels, axis=0)
        document["baseline_mae"] = float(np.abs(self.outcome.labels - median_Y)[:, columns].mean())
        return document

    def summary(self) -> NumberScores:
        """Returns the scores over all images; of several numbers they are means over the numbers.

        `loss` is the squared error over the variance of the true numbers, `baseline_mae` the mean absolute error of
        their median.
        """
        scores = {
            "task": "regression",
            **self.with_intervals(("mae", "rmse", "r2"), slice(None)),
            "numbers": len(self.outcome.classes),
            "loss": self.outcome.loss,
            "resamples": len(self.resampled["mae"]),
            "images": self.images,
            "unreadable": len(self.outcome.unreadable),  # skipped, not in `images`
        }
        if self.optimistic:
            scores["optimistic"] = True
        return cast(NumberScores, scores)

    @cached_property
    def per_number(self) -> dict[str, ErrorsOfNumber]:
        """The scores of each number."""
        labels = self.outcome.labels
        return {
            name: cast(
                ErrorsOfNumber,
                {
                    **self.with_intervals(("mae", "rmse", "r2", "mean_error"), [k]),
                    "smallest": float(labels[:, k].min()),
                    "largest": float(labels[:, k].max()),
                },
            )
            for k, name in enumerate(self.outcome.classes)
        }

    def to_json(self) -> NumberDocument:
        """Returns the summary, the scores of each number, and the numbers of each image."""
        outcome, names = self.outcome, self.outcome.classes
        rows = zip(outcome.paths, outcome.labels.tolist(), outcome.predicted.tolist(), strict=True)
        return {
            **self.summary(),
            "data": self.description,
            "per_number": self.per_number,
            "unreadable_files": [{"path": error.name, "error": error.reason} for error in outcome.unreadable],
            "predictions": [
                {
                    "path": path,
                    "true": dict(zip(names, true, strict=True)),
                    "predicted": dict(zip(names, predicted, strict=True)),
                }
                for path, true, predicted in rows
            ],
        }


def describe_numbers(scores: Mapping[str, Any]) -> str:
    """Returns the errors of a summary with their intervals as text."""
    parts = []
    for name, title in {"mae": "mean absolute error", "r2": "R2"}.items():
        interval = scores[f"{name}_interval"]
        ends = "" if interval is None else f" (95% interval {interval[0]:.4g} to {interval[1]:.4g})"
        parts.append(f"{title} {scores[name]:.4g}{ends}")
    if scores["numbers"] > 1:
        return f"means over {scores['numbers']} numbers: {', '.join(parts)}"
    return f"{', '.join(parts)}; always predicting the median has the mean absolute error {scores['baseline_mae']:.4g}"
