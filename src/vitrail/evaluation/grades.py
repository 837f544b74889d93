"""Scores of ordered grades: quadratic weighted kappa and the error in grades. Shapes: n images, Y grades."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vitrail.data.labels import factorize
from vitrail.documents import GradeAverages, Scores
from vitrail.evaluation.evaluation import Evaluation
from vitrail.evaluation.group_scores import proportion_interval
from vitrail.evaluation.metrics import accuracy_interval
from vitrail.evaluation.outcome import Outcome
from vitrail.intervals import (
    RESAMPLES,
    bootstrap_counts,
    bootstrap_groups,
    percentile_interval,
    widen_for_groups,
)

GRADE_SCORES = ("quadratic_kappa", "grade_mae", "within_one")


def quadratic_kappa(outcome: Outcome) -> float:
    """Returns Cohen's kappa with quadratic weights (Cohen 1968), as scikit-learn computes it for all grades.

    1 is agreement, 0 that of chance; an error counts as the square of its size in grades. It is 0 where the true and
    predicted grades of all images are one grade, since chance would then agree too.
    """
    cells, grades = grade_cells(outcome), len(outcome.classes)
    return float(score_cells(np.bincount(cells, minlength=grades**2)[None], grades)["quadratic_kappa"][0])


def grade_cells(outcome: Outcome) -> np.ndarray:
    """Returns the cell of each image in the table of true and predicted grades, (n,)."""
    cells: np.ndarray = outcome.labels * len(outcome.classes) + outcome.predicted
    return cells


def score_cells(counts_RC: np.ndarray, grades: int) -> dict[str, np.ndarray]:
    """Returns the scores for each row of counts of the cells, (R, Y * Y)."""
    true, predicted = (each.ravel() for each in np.indices((grades, grades)))
    distance = np.abs(true - predicted)
    images_R = counts_RC.sum(axis=1)
    table_RYY = counts_RC.reshape(-1, grades, grades).astype(float)
    square_YY = (distance**2).reshape(grades, grades).astype(float)
    by_chance_R = np.einsum("ri,ij,rj->r", table_RYY.sum(axis=2), square_YY, table_RYY.sum(axis=1)) / images_R
    observed_R = counts_RC @ (distance**2)
    has_chance_R = by_chance_R > 0
    return {
        "quadratic_kappa": np.where(has_chance_R, 1 - observed_R / np.where(has_chance_R, by_chance_R, 1), 0.0),
        "grade_mae": counts_RC @ distance / images_R,
        "within_one": counts_RC @ (distance <= 1) / images_R,
    }


def score_grades(outcome: Outcome, seed: int = 0) -> GradeAverages:
    """Returns kappa, the mean absolute error in grades and the fraction that is at most one grade off.

    The 95% intervals are a percentile bootstrap over images, or over groups, wider for few groups; that of the
    fraction is the interval of a proportion. If all images are right, resampling gives no width, and the interval of
    the accuracy says how many may be wrong.
    """
    grades, cells = len(outcome.classes), grade_cells(outcome)
    generator = np.random.Generator(np.random.Philox(seed))
    counts = np.bincount(cells, minlength=grades**2)
    if outcome.groups is None:
        resampled = bootstrap_counts(counts, generator, RESAMPLES)
    else:
        present, numbers = np.unique(cells, return_inverse=True)
        resampled = np.zeros((RESAMPLES, grades**2))
        resampled[:, present] = bootstrap_groups(numbers, factorize(outcome.groups)[1], generator, RESAMPLES)
    scores, drawn = score_cells(counts[None], grades), score_cells(resampled, grades)
    is_near = np.abs(outcome.labels - outcome.predicted) <= 1
    bounds = {"quadratic_kappa": (-1.0, 1.0), "grade_mae": (0.0, grades - 1.0)}
    document: dict[str, float | list[float]] = {}
    for name in GRADE_SCORES:
        value = float(scores[name][0])
        low, high = (float(end) for end in percentile_interval(drawn[name]))
        if name == "within_one":
            low, high = proportion_interval(is_near, outcome.groups)
        elif outcome.correct.all():
            least = accuracy_interval(outcome)[0]
            low, high = (0.0, 1 - least) if name == "grade_mae" else (least, 1.0)
        elif outcome.groups is not None:
            low, high = widen_for_groups((low, high), value, len(set(outcome.groups)), bounds=bounds[name])
        document |= {name: value, f"{name}_interval": [low, high]}
    return document  # type: ignore[return-value]  # a key for each of GRADE_SCORES


@dataclass(frozen=True)
class GradeEvaluation(Evaluation):
    """The outcome of a classifier of grades, and its scores: those of classes, and those that know the order."""

    @cached_property
    def grades(self) -> GradeAverages:
        """Kappa and the errors in grades, with their intervals."""
        return score_grades(self.outcome)

    def summary(self) -> Scores:
        """Returns the scores of `Evaluation.summary`, with those of grades."""
        return {"task": "grades", **super().summary(), **self.grades}


def describe_grades(scores: GradeAverages) -> str:
    """Returns the scores of grades with their intervals as text."""
    titles = ("quadratic weighted kappa", "mean error in grades", "at most one grade off")
    values = (
        (title, scores[name], scores[f"{name}_interval"])  # type: ignore[literal-required]
        for title, name in zip(titles, GRADE_SCORES, strict=True)
    )
    return ", ".join(f"{title} {value:.4f} ({low:.4f} to {high:.4f})" for title, value, (low, high) in values)
