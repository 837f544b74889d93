"""The outcome and the metrics of images with several labels. Shapes: n images, Y classes (labels)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from vitrail.data.labels import factorize
from vitrail.evaluation.calibration_error import measure_calibration_error
from vitrail.evaluation.group_scores import proportion_interval
from vitrail.evaluation.outcome import ImageLogits
from vitrail.intervals import (
    RESAMPLES,
    Interval,
    bootstrap_counts,
    f1_interval,
    percentile_interval,
    t_quantile,
    wilson_interval,
)
from vitrail.label_documents import LabelScores, MultiLabelAverages
from vitrail.tasks import DEFAULT_THRESHOLD, sigmoid

MAX_VALUES = 3e8  # images x classes x resamples: more would take minutes, so large sets are resampled less often
MIN_RESAMPLES = 200
CHUNK_VALUES = 4_000_000  # images x resamples that are in memory at once


@dataclass(frozen=True)
class MultiLabelOutcome(ImageLogits):
    """The true labels and the logits of each image: labels (n, Y) of 0 and 1; with the classifier's thresholds.

    Images that several classifiers answered, as in a cross-validation, have `image_thresholds` (n, Y) instead.
    """

    thresholds: tuple[float, ...] = ()
    image_thresholds: np.ndarray | None = None

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Sigmoid of the logits, (n, Y)."""
        return sigmoid(self.logits)

    @cached_property
    def predicted(self) -> np.ndarray:
        """Whether the probability of a label reaches its threshold, (n, Y)."""
        predicted: np.ndarray = self.probabilities >= self.thresholds_of_images
        return predicted

    @property
    def thresholds_of_images(self) -> np.ndarray:
        """The threshold of each label in each image, (n, Y); 0.5 if none was chosen."""
        if self.image_thresholds is not None:
            return self.image_thresholds
        return np.broadcast_to(np.array(self.thresholds or DEFAULT_THRESHOLD), self.labels.shape)

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether all labels of an image are right, (n,)."""
        correct: np.ndarray = (self.predicted == self.labels).all(axis=1)
        return correct

    @cached_property
    def losses(self) -> np.ndarray:
        """Mean binary cross-entropy of each image over the labels, in nats, (n,)."""
        signed = np.where(self.labels == 1, -self.logits, self.logits)
        losses: np.ndarray = np.logaddexp(0, signed).mean(axis=1)
        return losses

    @property
    def accuracy(self) -> float:
        """The fraction of images whose labels are all right (subset accuracy)."""
        return float(self.correct.mean())

    @property
    def loss(self) -> float:
        """Mean binary cross-entropy in nats."""
        return float(self.losses.mean())

    @cached_property
    def map(self) -> float:
        """Mean average precision over the classes that have images; 0 if none has."""
        values = average_precisions(self)
        return 0.0 if np.isnan(values).all() else float(np.nanmean(values))


def average_precisions(outcome: MultiLabelOutcome) -> np.ndarray:
    """Returns the average precision of each class, (Y,), as scikit-learn defines it; NaN for a class without images."""
    ones = np.ones((1, len(outcome.labels)))
    return np.concatenate([ap for _, ap in iter_average_precisions(outcome, lambda start, stop: ones, 1)], axis=1)[0]


def iter_average_precisions(outcome: MultiLabelOutcome, draw: Any, resamples: int) -> Any:
    """Yields (first resample, average precisions (r, Y)) for chunks of weights of the images (r, n)."""
    n = len(outcome.labels)
    orders = np.argsort(-outcome.logits, axis=0, kind="stable")
    size = max(1, int(CHUNK_VALUES / n))
    for start in range(0, resamples, size):
        weights = draw(start, min(start + size, resamples))
        columns = [
            weighted_average_precision(outcome.logits[order, k], outcome.labels[order, k], weights[:, order])
            for k, order in enumerate(orders.T)
        ]
        yield start, np.stack(columns, axis=1)


def weighted_average_precision(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the average precision for each row of weights (r, n); logits and labels (n,) are in falling order."""
    last = np.flatnonzero(np.append(np.diff(logits) != 0, True))  # of images with the same logit
    group = np.repeat(np.arange(len(last)), np.diff(np.append(-1, last)))
    positives = weights * labels
    precision = positives.cumsum(axis=1)[:, last] / np.maximum(weights.cumsum(axis=1)[:, last], 1e-300)
    with np.errstate(invalid="ignore"):
        result: np.ndarray = (positives * precision[:, group]).sum(axis=1) / positives.sum(axis=1)
    return result


def f1_scores(true_positives: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Returns F1 from true positives and errors (false positives and false negatives); 0 where all are 0."""
    return 2 * true_positives / np.maximum(2 * true_positives + errors, 1)


def count_resamples(outcome: ImageLogits) -> int:
    """Returns how often the images are resampled for an interval."""
    return int(np.clip(MAX_VALUES / outcome.labels.size, MIN_RESAMPLES, RESAMPLES))


class ResampledAverages(MultiLabelAverages):
    """The averages, and the resampled average precisions of each class, (resamples, Y)."""

    per_class_map: np.ndarray[tuple[int, int], np.dtype[np.float64]]


def average_scores(outcome: MultiLabelOutcome, seed: int = 0) -> ResampledAverages:
    """Returns mAP, macro F1 and micro F1 with their 95% intervals, from a bootstrap over images, or groups.

    The interval of mAP is `average_precision_interval`, those of F1 are percentiles. Averages are over the classes that
    have images. Where every resample gives 1, the interval is Wilson's for as many successes as images, or groups.
    """
    has_images = outcome.labels.any(axis=0)
    hits = ((outcome.labels == 1) & outcome.predicted).astype(float)
    misses = (outcome.labels != outcome.predicted).astype(float)
    n, resamples = len(outcome.labels), count_resamples(outcome)
    generator = np.random.Generator(np.random.Philox(seed))
    drawn: dict[str, list[np.ndarray]] = {"map": [], "macro_f1": [], "micro_f1": []}
    per_class = []
    units = np.arange(n) if outcome.groups is None else factorize(outcome.groups)[1]  # what is resampled

    def draw(start: int, stop: int) -> np.ndarray:
        weights = bootstrap_counts(np.ones(units.max() + 1), generator, stop - start)[:, units].astype(float)
        true_positives, errors = weights @ hits, weights @ misses
        drawn["macro_f1"].append(f1_scores(true_positives, errors)[:, has_images].mean(axis=1))
        drawn["micro_f1"].append(f1_scores(true_positives.sum(axis=1), errors.sum(axis=1)))
        return weights

    for _, values in iter_average_precisions(outcome, draw, resamples):
        per_class.append(values)
        drawn["map"].append(mean_of_numbers(values))
    f1 = f1_scores(hits.sum(axis=0), misses.sum(axis=0))
    scores = {
        "map": outcome.map,
        "macro_f1": float(f1[has_images].mean()) if has_images.any() else 0.0,
        "micro_f1": float(f1_scores(hits.sum(), misses.sum())),
    }
    n_units = int(units.max()) + 1
    intervals = {
        f"{name}_interval": bootstrap_interval(np.concatenate(drawn[name]), n_units)
        for name in ("macro_f1", "micro_f1")
    }
    rarity = float((1 / outcome.labels.sum(axis=0)[has_images]).mean()) if has_images.any() else 1.0
    intervals["map_interval"] = average_precision_interval(
        np.concatenate(drawn["map"]), scores["map"], n_units, min(1 / rarity, n_units - 1)
    )
    resampled = {"per_class_map": np.concatenate(per_class), "resamples": resamples}
    return cast(ResampledAverages, {**scores, **intervals, **resampled})


def mean_of_numbers(values: np.ndarray) -> np.ndarray:
    """Returns the mean of each row without NaN; NaN for a row of NaN."""
    known = ~np.isnan(values)
    means: np.ndarray = np.where(known, values, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)
    return means


def bootstrap_interval(resampled: np.ndarray, n: int) -> list[float] | None:
    """Returns the percentile interval of resampled values; None if none is a number. `n` units were resampled."""
    values = resampled[~np.isnan(resampled)]
    if not len(values):
        return None
    if (values == 1).all():
        return list(wilson_interval(n, n))
    return [float(bound) for bound in percentile_interval(values)]


def average_precision_interval(
    resampled: np.ndarray, estimate: float, n: int, degrees_of_freedom: float
) -> list[float] | None:
    """Returns the 95% interval of an average precision, or of a mean of several, from its bootstrap over `n` units.

    The average precision of few images is too high, and that of a resample, in which images repeat, is higher still. So
    the mean distance of the resamples from the estimate is subtracted, on the scale of the logit. The width is that of
    Student's t; the degrees of freedom are the number of images with the label (of several labels, the harmonic mean).
    Percentiles of the bootstrap hold the truth of weak models in as few as 80% of draws (docs/statistics.md).
    """
    values = resampled[~np.isnan(resampled)]
    if not len(values) or (values == 1).all():
        return bootstrap_interval(resampled, n)
    margin = 1 / (4 * n)

    def logit(value: np.ndarray | float) -> np.ndarray:
        clipped = np.clip(value, margin, 1 - margin)
        return np.log(clipped / (1 - clipped))

    logits = logit(values)
    center = 2 * logit(estimate) - logits.mean()
    half = t_quantile(max(degrees_of_freedom, 1.0)) * logits.std(ddof=1)
    low, high = float(sigmoid(center - half)), float(sigmoid(center + half))
    return [min(low, estimate), max(high, estimate)]


def per_class_scores(outcome: MultiLabelOutcome, resampled_ap: np.ndarray) -> dict[str, LabelScores]:
    """Returns average precision, precision, recall and F1 of each class with intervals, its calibration and counts.

    A figure is None if it has no meaning: recall and average precision of a class without images, precision of one that
    is never predicted, and the threshold of images that have different ones.
    """
    labels, predicted = outcome.labels == 1, outcome.predicted
    precisions = average_precisions(outcome)
    scores: dict[str, LabelScores] = {}
    for k, name in enumerate(outcome.classes):
        hits, n_true, n_predicted = (
            int(each.sum()) for each in (labels[:, k] & predicted[:, k], labels[:, k], predicted[:, k])
        )
        errors = n_true + n_predicted - 2 * hits
        limits = np.unique(outcome.thresholds_of_images[:, k])
        calibration = measure_calibration_error(LabelAnswers(outcome.probabilities[:, k], labels[:, k]))
        scores[name] = {
            "ap": float(precisions[k]) if n_true else None,
            "ap_interval": average_precision_interval(resampled_ap[:, k], float(precisions[k]), n_true, n_true)
            if n_true
            else None,
            "precision": hits / n_predicted if n_predicted else None,
            "recall": hits / n_true if n_true else None,
            "f1": 2 * hits / (n_true + n_predicted) if n_true + n_predicted else None,
            "f1_interval": list(f1_interval(hits, errors)) if hits + errors else None,
            "ece": calibration.ece,
            "ece_corrected": calibration.corrected,
            "ece_interval": list(calibration.interval),
            "threshold": float(limits[0]) if len(limits) == 1 else None,
            "images": n_true,
            "predicted": n_predicted,
        }
    return scores


@dataclass(frozen=True)
class LabelAnswers:
    """The probability of a label in each image, and whether it is there."""

    confidence: np.ndarray
    correct: np.ndarray


def co_occurrence(labels: np.ndarray) -> np.ndarray:
    """Returns how many images have both labels of each pair, (Y, Y); on the diagonal, how many have the label."""
    present = (labels != 0).astype(np.int64)
    counts: np.ndarray = present.T @ present
    return counts


def subset_accuracy_interval(outcome: MultiLabelOutcome) -> Interval:
    """Returns the 95% interval of the fraction of images whose labels are all right; over groups, if there are any."""
    return proportion_interval(outcome.correct, outcome.groups)
