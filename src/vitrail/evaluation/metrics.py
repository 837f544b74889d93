"""Metrics of an outcome. Shapes: n images, Y classes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from vitrail.data.labels import factorize
from vitrail.documents import Averages, ClassScores, ConfusedPair
from vitrail.errors import UsageError, first_line
from vitrail.evaluation.group_scores import proportion_interval
from vitrail.evaluation.outcome import Outcome
from vitrail.intervals import (
    RESAMPLES,
    Interval,
    bootstrap_counts,
    bootstrap_groups,
    f1_interval,
    mean_of_proportions_interval,
    percentile_interval,
    widen_for_groups,
    wilson_interval,
)
from vitrail.parts import check_part, make_part

AVERAGES = ("balanced_accuracy", "macro_f1")
TOP_K = 5


def brier_score(outcome: Outcome) -> float:
    """Returns the mean squared error of the probabilities, summed over classes (Brier 1950): 0 is best, 2 is worst."""
    errors = outcome.probabilities.copy()
    errors[np.arange(len(errors)), outcome.labels] -= 1
    return float((errors**2).sum(axis=1).mean())


class Answers(Protocol):
    """Answers with a confidence each: of the predicted class, or that a label is present."""

    @property
    def confidence(self) -> np.ndarray: ...

    @property
    def correct(self) -> np.ndarray: ...


def expected_calibration_error(outcome: Answers, bins: int = 15) -> float:
    """Returns the mean gap between confidence and accuracy over bins of equal width (ECE, Naeini et al. 2015)."""
    rows = reliability_bins(outcome, bins)
    return sum(row["images"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / len(outcome.correct)


def reliability_bins(outcome: Answers, bins: int = 15) -> list[dict[str, Any]]:
    """Returns the bins of a reliability diagram: images, mean confidence and accuracy; empty bins are omitted."""
    bin_of_image = np.minimum((outcome.confidence * bins).astype(int), bins - 1)
    rows = []
    for number in range(bins):
        inside = bin_of_image == number
        n = int(inside.sum())
        if n:
            rows.append(
                {
                    "from": number / bins,
                    "to": (number + 1) / bins,
                    "images": n,
                    "confidence": float(outcome.confidence[inside].mean()),
                    "accuracy": float(outcome.correct[inside].mean()),
                    "interval": list(wilson_interval(int(outcome.correct[inside].sum()), n)),
                }
            )
    return rows


def top_k_accuracy(outcome: Outcome, k: int = TOP_K) -> float:
    """Returns the fraction of images whose true class is among the `k` most probable.

    Raises `ValueError` unless there are more than `k` classes: with fewer it is 1 for every model.
    """
    if k >= len(outcome.classes):
        raise ValueError(f"the top {k} of {len(outcome.classes)} classes say nothing about a model")
    top_k = np.argpartition(-outcome.logits, k - 1, axis=1)[:, :k]
    return float((top_k == outcome.labels[:, None]).any(axis=1).mean())


def confusion_matrix(outcome: Outcome) -> np.ndarray:
    """Returns the number of images by true class (rows) and predicted class (columns), (Y, Y)."""
    from sklearn import metrics

    class_indices = np.arange(len(outcome.classes))
    matrix: np.ndarray = metrics.confusion_matrix(outcome.labels, outcome.predicted, labels=class_indices)
    return matrix


def per_class_scores(outcome: Outcome) -> dict[str, ClassScores]:
    """Returns precision, recall, F1 and the number of images of each class.

    Recall is None for a class without images, precision is None for a class that is never predicted.
    """
    from sklearn.metrics import precision_recall_fscore_support

    class_indices = np.arange(len(outcome.classes))
    scores = precision_recall_fscore_support(
        outcome.labels, outcome.predicted, labels=class_indices, zero_division=np.nan
    )
    return {
        name: {
            "precision": _none_if_nan(precision),
            "recall": _none_if_nan(recall),
            "f1": _none_if_nan(f1),
            "images": int(images),
        }
        for name, precision, recall, f1, images in zip(outcome.classes, *scores, strict=True)
    }


def most_confused_pairs(matrix: np.ndarray, classes: tuple[str, ...], max_pairs: int = 10) -> list[ConfusedPair]:
    """Returns the (true, predicted) pairs with the most errors, each with its number of images."""
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:max_pairs]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, errors.shape), strict=True)]
    return [
        {"true": classes[i], "predicted": classes[j], "images": int(errors[i, j])} for i, j in pairs if errors[i, j]
    ]


def average_scores(outcome: Outcome, resamples: int = RESAMPLES, seed: int = 0) -> Averages:
    """Returns balanced accuracy, macro F1 and the F1 of every class, each with its 95% interval.

    The interval of macro F1 is a percentile bootstrap: resampling images is resampling cells of the confusion matrix.
    If all images are right, or all are wrong, that has no width, and the interval of balanced accuracy is used. If the
    images have groups, groups are resampled, for both, and few groups make the interval wider. As in scikit-learn,
    balanced accuracy excludes classes without images, and macro F1 those that have no images and are never predicted.
    """
    classes = len(outcome.classes)
    true, predicted, counts = _count_cells(outcome)
    scores = _averages_and_f1(true, predicted, counts, classes)
    true_counts, predicted_counts = (np.bincount(each, counts, classes).astype(int) for each in (true, predicted))
    correct_counts = np.bincount(true, counts * (true == predicted), classes).astype(int)
    has_images = true_counts > 0
    balanced_interval = mean_of_proportions_interval(correct_counts[has_images], true_counts[has_images])
    if outcome.accuracy in (0, 1):
        of_accuracy = accuracy_interval(outcome)  # wider if the images have groups; else with classes of unequal size
        ends = [*of_accuracy, *balanced_interval]
        macro_f1_interval = balanced_interval = (min(ends), max(ends))
    else:
        generator = np.random.Generator(np.random.Philox(seed))
        if outcome.groups is None:
            resampled = bootstrap_counts(counts, generator, resamples)
        else:
            resampled = bootstrap_groups(_cell_numbers(outcome), factorize(outcome.groups)[1], generator, resamples)
        averages = [_averages_and_f1(true, predicted, each, classes) for each in resampled]
        macro_f1_interval = _percentiles([each["macro_f1"] for each in averages])
        if outcome.groups is not None:
            balanced_interval = _percentiles([each["balanced_accuracy"] for each in averages])
            groups = len(set(outcome.groups))
            balanced_interval = widen_for_groups(balanced_interval, float(scores["balanced_accuracy"]), groups)
            macro_f1_interval = widen_for_groups(macro_f1_interval, float(scores["macro_f1"]), groups)
    errors = true_counts + predicted_counts - 2 * correct_counts
    return {
        "balanced_accuracy": float(scores["balanced_accuracy"]),
        "macro_f1": float(scores["macro_f1"]),
        "balanced_accuracy_interval": list(balanced_interval),
        "macro_f1_interval": list(macro_f1_interval),
        "f1_intervals": {
            name: list(f1_interval(int(correct_counts[i]), int(errors[i]))) if correct_counts[i] + errors[i] else None
            for i, name in enumerate(outcome.classes)
        },
    }


def _averages_and_f1(true: np.ndarray, predicted: np.ndarray, counts: np.ndarray, classes: int) -> dict[str, Any]:
    """Returns balanced accuracy, macro F1, and the F1 of each class, from the cells of a confusion matrix."""
    true_counts = np.bincount(true, counts, classes)
    predicted_counts = np.bincount(predicted, counts, classes)
    correct_counts = np.bincount(true, counts * (true == predicted), classes)
    has_images = true_counts > 0  # a resample may have no image of a class
    f1 = 2 * correct_counts / np.maximum(true_counts + predicted_counts, 1)
    recall = correct_counts[has_images] / true_counts[has_images]
    is_used = has_images | (predicted_counts > 0)
    return {"balanced_accuracy": recall.mean(), "macro_f1": f1[is_used].mean(), "f1": f1}


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def balanced_accuracy(outcome: Outcome) -> float:
    """Returns the mean recall of the classes that have images."""
    return float(_averages_of(outcome)["balanced_accuracy"])


def macro_f1(outcome: Outcome) -> float:
    """Returns the mean F1 of the classes that have images or are predicted."""
    return float(_averages_of(outcome)["macro_f1"])


def _averages_of(outcome: Outcome) -> dict[str, Any]:
    return _averages_and_f1(*_count_cells(outcome), len(outcome.classes))


def _count_cells(outcome: Outcome) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns true class, predicted class and number of images of each cell of the confusion matrix that has any."""
    classes = len(outcome.classes)
    cells, counts = np.unique(outcome.labels * classes + outcome.predicted, return_counts=True)
    true, predicted = np.divmod(cells, classes)
    return true, predicted, counts


def _cell_numbers(outcome: Outcome) -> np.ndarray:
    """Returns the cell of each image, in the order of `_count_cells`, (n,)."""
    cells = outcome.labels * len(outcome.classes) + outcome.predicted
    numbers: np.ndarray = np.unique(cells, return_inverse=True)[1].ravel()
    return numbers


def _percentiles(values: list[float]) -> Interval:
    low, high = percentile_interval(np.array(values))
    return float(low), float(high)


def accuracy_interval(outcome: Outcome) -> Interval:
    """Returns the 95% interval of the accuracy; over groups instead of images, if the images have groups."""
    return proportion_interval(outcome.correct, outcome.groups)


# metrics that are computed when they are named: outcome, and the arguments after the name -> a number
METRICS: dict[str, Callable[..., float]] = {"balanced_accuracy": balanced_accuracy, "macro_f1": macro_f1}


def compute_metrics(outcome: Outcome, names: Sequence[str]) -> dict[str, float]:
    """Returns the named metrics; raises `UsageError` for one that is unknown, fails, or does not return a number."""
    check_metrics(names)
    values = {}
    for name in names:
        try:
            values[name] = float(make_part(METRICS, name, outcome))
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"the metric {name!r} fails: {type(error).__name__}: {first_line(error)}") from error
    return values


def check_metrics(names: Iterable[str]) -> None:
    """Raises `UsageError` for a name that is not in `METRICS`."""
    for name in names:
        check_part("metric", "metric", name, AVERAGES)
