"""A linear head fitted on features with an L2 penalty. `FITS` has a row for each kind of answer.

Shapes: n images, D features, Y classes, labels or numbers.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.console import progress_bar
from vitrail.errors import VitrailError
from vitrail.evaluation.outcome import ImageLogits
from vitrail.evaluation.outcomes import OUTCOMES, VALIDATION_SCORES
from vitrail.target_scale import TargetScale
from vitrail.tasks import SINGLE_LABEL, TASKS, AnswerKind

PENALTIES = tuple(float(f"{10**e:.3g}") for e in np.arange(1, -5.5, -0.5))  # 10 to 0.00001, two per decade
DEFAULT_PENALTY = 0.01  # without a validation split
PATIENCE = 4  # the search stops after this number of weaker penalties without improvement: they only overfit
MAX_DOUBLE_VALUES = 1e8  # more features than this are standardized in float32
Weights = tuple[np.ndarray, np.ndarray]  # weight (Y, D) and bias (Y,)
NO_IMAGES = ("to fit a head, every class needs a training image", "vitrail check lists the classes without images")


@dataclass(frozen=True)
class LinearHead:
    """Weight (Y, D) and bias (Y,), the penalty they were fitted with, and the scores of every penalty tried."""

    weight: np.ndarray
    bias: np.ndarray
    penalty: float
    scores_by_penalty: list[dict[str, float]]  # rows with penalty, and loss and scores of each split
    scale: TargetScale | None = None  # of numbers: the head returns standardized ones, as a model does

    def logits(self, features_ND: np.ndarray) -> np.ndarray:
        """Returns logits, or numbers in their units, (n, Y)."""
        logits_NY: np.ndarray = features_ND @ self.weight.T + self.bias
        return logits_NY if self.scale is None else logits_NY * self.scale.std + self.scale.mean


def fit_linear_head(
    features_ND: np.ndarray,
    labels_N: np.ndarray,
    validation: tuple[np.ndarray, np.ndarray] | None,
    classes: int,
    penalty: float | None = None,
    *,
    task: str = SINGLE_LABEL,
    scale: TargetScale | None = None,
) -> LinearHead:
    """Returns a head fitted by scikit-learn on standardized features.

    The loss is that of the task's row in `FITS` + penalty / 2 times the squared norm of the weights. The
    standardization is folded into the weights. Labels are those of `Images`: (n,), or (n, Y) for several labels and for
    numbers. The head returns numbers on `scale`, by default that of the labels. Without `penalty`, the one of
    `PENALTIES` with the best score of the task (`Task.score`) on `validation` (features, labels) is used, then the
    lowest loss; without validation it is `DEFAULT_PENALTY`.
    """
    if penalty is not None:
        penalties: tuple[float, ...] = (penalty,)
    else:
        penalties = PENALTIES if validation else (DEFAULT_PENALTY,)
    answer = TASKS[task].answer
    if answer == "numbers":
        scale = scale or TargetScale.of(labels_N, [str(i) for i in range(classes)])
        targets = (labels_N - np.array(scale.mean)) / np.array(scale.std)
    else:
        targets, scale = labels_N, None
    mean_D, std_D = features_ND.mean(0, dtype=np.float64), features_ND.std(0, dtype=np.float64)
    std_D[std_D < 1e-6 * std_D.max(initial=1e-12)] = np.inf  # a constant feature gets weight 0
    dtype = np.float64 if features_ND.size < MAX_DOUBLE_VALUES else np.float32
    standardized_ND = ((features_ND - mean_D) / std_D).astype(dtype)
    splits = {"train": (features_ND, labels_N)} | ({"validation": validation} if validation else {})
    heads: list[LinearHead] = []
    rows: list[dict[str, float]] = []
    with progress_bar("fitting the linear head", len(penalties)) as progress:
        fitted = FITS[answer](standardized_ND, targets, classes, penalties)
        for each, (weight_YD, bias_Y) in zip(penalties, fitted, strict=False):
            folded_YD = weight_YD / std_D
            head = LinearHead(folded_YD, bias_Y - folded_YD @ mean_D, each, rows, scale)
            heads.append(head)
            rows.append({"penalty": each, **_score_head(head, splits, task)})
            progress.advance()
            if validation and len(rows) - 1 - _best_on_validation(rows, task) >= PATIENCE:
                break
    return heads[_best_on_validation(rows, task)] if validation else heads[0]


def fit_classes(
    features_ND: np.ndarray, labels_N: np.ndarray, classes: int, penalties: tuple[float, ...]
) -> Iterator[Weights]:
    """Yields the head of multinomial logistic regression (mean cross-entropy) for each penalty.

    Each fit starts from the solution of the one before. Raises `VitrailError` if a class has no image.
    """
    model = make_logistic_regression()
    for penalty in penalties:
        fit_quietly(model, features_ND, labels_N, penalty)
        if len(model.classes_) != classes:
            raise VitrailError(*NO_IMAGES)
        weight_YD, bias_Y = model.coef_, model.intercept_
        if classes == 2:  # scikit-learn returns one row: the logit of the second class minus that of the first
            weight_YD, bias_Y = np.concatenate([-weight_YD, weight_YD]) / 2, np.concatenate([-bias_Y, bias_Y]) / 2
        yield weight_YD.astype(np.float64), bias_Y.astype(np.float64)


def fit_labels(
    features_ND: np.ndarray, labels_NY: np.ndarray, classes: int, penalties: tuple[float, ...]
) -> Iterator[Weights]:
    """Yields the head of one logistic regression per label (mean binary cross-entropy) for each penalty.

    A label that all images have gets weight 0 and the log-odds of n + 1/2 images with it to 1/2 without. Raises
    `VitrailError` if a label has no image.
    """
    n, positives_Y = len(labels_NY), (labels_NY == 1).sum(axis=0)
    if not positives_Y.all():
        raise VitrailError(*NO_IMAGES)
    models = [make_logistic_regression() for _ in range(classes)]
    for penalty in penalties:
        weight_YD = np.zeros((classes, features_ND.shape[1]))
        bias_Y = np.full(classes, np.log(2 * n + 1))
        for k in np.flatnonzero(positives_Y < n):
            fit_quietly(models[k], features_ND, labels_NY[:, k] == 1, penalty)
            weight_YD[k], bias_Y[k] = models[k].coef_[0], models[k].intercept_[0]
        yield weight_YD, bias_Y


def fit_numbers(
    features_ND: np.ndarray, targets_NY: np.ndarray, classes: int, penalties: tuple[float, ...]
) -> Iterator[Weights]:
    """Yields the head of ridge regression (half the mean squared error of standardized numbers) for each penalty."""
    from sklearn.linear_model import Ridge

    for penalty in penalties:
        model = Ridge(alpha=penalty * len(targets_NY)).fit(features_ND, targets_NY)
        yield model.coef_.reshape(classes, -1).astype(np.float64), np.atleast_1d(model.intercept_).astype(np.float64)


FITS: dict[AnswerKind, Callable[..., Iterator[Weights]]] = {
    "class": fit_classes,
    "labels": fit_labels,
    "numbers": fit_numbers,
}


def make_logistic_regression() -> Any:
    """Returns scikit-learn's logistic regression (L-BFGS); each fit starts from the solution of the one before."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000, warm_start=True)


def fit_quietly(model: Any, features_ND: np.ndarray, labels_N: np.ndarray, penalty: float) -> None:
    """Fits a logistic regression without the warning of the weakest penalties, which do not converge."""
    from sklearn.exceptions import ConvergenceWarning

    model.set_params(C=1 / (penalty * len(labels_N)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features_ND, labels_N)


def _score_head(head: LinearHead, splits: dict[str, tuple[np.ndarray, np.ndarray]], task: str) -> dict[str, float]:
    """Returns what each validation of the task measures, on each split."""
    names = tuple(str(i) for i in range(len(head.bias)))
    scores: dict[str, float] = {}
    for split, (features, labels) in splits.items():
        outcome = OUTCOMES[task](ImageLogits([], labels, head.logits(features), names), ())
        scores |= {f"{split}_{name}": score(outcome) for name, score in VALIDATION_SCORES[task].items()}
    return scores


def _best_on_validation(rows: list[dict[str, float]], task: str) -> int:
    score = f"validation_{TASKS[task].score}"
    return max(range(len(rows)), key=lambda i: (rows[i][score], -rows[i]["validation_loss"]))
