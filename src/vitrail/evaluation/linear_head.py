"""A linear head fitted on features: multinomial logistic regression with an L2 penalty."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vitrail.console import progress_bar
from vitrail.errors import VitrailError
from vitrail.evaluation.outcome import Outcome

PENALTIES = tuple(float(f"{10**e:.3g}") for e in np.arange(1, -5.5, -0.5))  # 10 to 0.00001, two per decade
DEFAULT_PENALTY = 0.01  # without a validation split
PATIENCE = 4  # the search stops after this number of weaker penalties without improvement: they only overfit
MAX_DOUBLE_VALUES = 1e8  # more features than this are standardized in float32


@dataclass(frozen=True)
class LinearHead:
    """Weight (Y, D) and bias (Y,), the penalty they were fitted with, and the scores of every penalty tried."""

    weight: np.ndarray
    bias: np.ndarray
    penalty: float
    scores_by_penalty: list[dict[str, float]]  # rows with penalty, and loss and accuracy of each split

    def logits(self, features_ND: np.ndarray) -> np.ndarray:
        logits_NY: np.ndarray = features_ND @ self.weight.T + self.bias
        return logits_NY


def fit_linear_head(
    features_ND: np.ndarray,
    labels_N: np.ndarray,
    validation: tuple[np.ndarray, np.ndarray] | None,
    classes: int,
    penalty: float | None = None,
) -> LinearHead:
    """Returns a head fitted by scikit-learn's logistic regression (L-BFGS) on standardized features.

    The loss is the mean cross-entropy + penalty / 2 times the squared norm of the weights. The standardization is
    folded into the weights. Without `penalty`, the one of `PENALTIES` with the highest accuracy on `validation`
    (features, labels) is used, then the lowest loss; without validation it is `DEFAULT_PENALTY`.
    """
    if penalty is not None:
        penalties: tuple[float, ...] = (penalty,)
    else:
        penalties = PENALTIES if validation else (DEFAULT_PENALTY,)
    mean_D, std_D = features_ND.mean(0, dtype=np.float64), features_ND.std(0, dtype=np.float64)
    std_D[std_D < 1e-6 * std_D.max(initial=1e-12)] = np.inf  # a constant feature gets weight 0
    dtype = np.float64 if features_ND.size < MAX_DOUBLE_VALUES else np.float32
    standardized_ND = ((features_ND - mean_D) / std_D).astype(dtype)
    splits = {"train": (features_ND, labels_N)} | ({"validation": validation} if validation else {})
    heads: list[LinearHead] = []
    rows: list[dict[str, float]] = []
    with progress_bar("fitting the linear head", len(penalties)) as progress:
        regressions = fit_regressions(standardized_ND, labels_N, classes, penalties)
        for each, (weight_YD, bias_Y) in zip(penalties, regressions, strict=False):
            folded_YD = weight_YD / std_D
            head = LinearHead(folded_YD, bias_Y - folded_YD @ mean_D, each, rows)
            heads.append(head)
            rows.append({"penalty": each, **_score_head(head, splits)})
            progress.advance()
            if validation and len(rows) - 1 - _best_on_validation(rows) >= PATIENCE:
                break
    return heads[_best_on_validation(rows)] if validation else heads[0]


def fit_regressions(
    features_ND: np.ndarray, labels_N: np.ndarray, classes: int, penalties: tuple[float, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields weight (Y, D) and bias (Y,) for each penalty; each fit starts from the solution of the one before.

    Raises `VitrailError` if a class has no image.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    n = len(labels_N)
    model = LogisticRegression(max_iter=1000, warm_start=True)
    for penalty in penalties:
        model.set_params(C=1 / (penalty * n))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # expected for the weakest penalties
            model.fit(features_ND, labels_N)
        if len(model.classes_) != classes:
            raise VitrailError(
                "to fit a head, every class needs a training image", "vitrail check lists the classes without images"
            )
        weight_YD, bias_Y = model.coef_, model.intercept_
        if classes == 2:  # scikit-learn returns one row: the logit of the second class minus that of the first
            weight_YD, bias_Y = np.concatenate([-weight_YD, weight_YD]) / 2, np.concatenate([-bias_Y, bias_Y]) / 2
        yield weight_YD.astype(np.float64), bias_Y.astype(np.float64)


def _score_head(head: LinearHead, splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for name, (features, labels) in splits.items():
        outcome = Outcome([], labels, head.logits(features), ())
        scores |= {f"{name}_loss": outcome.loss, f"{name}_accuracy": outcome.accuracy}
    return scores


def _best_on_validation(rows: list[dict[str, float]]) -> int:
    return max(range(len(rows)), key=lambda i: (rows[i]["validation_accuracy"], -rows[i]["validation_loss"]))
