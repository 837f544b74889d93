"""The scores by which a sweep compares its trials: a row for each task."""

from dataclasses import dataclass
from typing import Literal, get_args

from vitrail.errors import UsageError
from vitrail.tasks import GRADES, MULTI_LABEL, REGRESSION, SINGLE_LABEL, TASKS

Metric = Literal["accuracy", "balanced_accuracy", "loss", "map", "quadratic_kappa", "mae", "r2"]


@dataclass(frozen=True)
class TaskMetrics:
    """The scores of the trials of a task."""

    metrics: tuple[Metric, ...]  # what each validation measures; the first is the default
    scores: tuple[str, ...]  # those of a complete trial that have an interval


TASK_METRICS: dict[str, TaskMetrics] = {
    SINGLE_LABEL: TaskMetrics(
        ("accuracy", "balanced_accuracy", "loss"),
        ("accuracy", "balanced_accuracy", "macro_f1"),
    ),
    MULTI_LABEL: TaskMetrics(
        ("map", "accuracy", "loss"),
        ("map", "macro_f1", "micro_f1", "accuracy"),
    ),
    GRADES: TaskMetrics(
        ("quadratic_kappa", "accuracy", "balanced_accuracy", "loss"),
        ("quadratic_kappa", "grade_mae", "accuracy", "balanced_accuracy", "macro_f1"),
    ),
    REGRESSION: TaskMetrics(
        ("mae", "r2", "loss"),
        ("mae", "rmse", "r2"),
    ),
}
TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "loss": "loss",
    "map": "mAP",
    "quadratic_kappa": "quadratic weighted kappa",
    "mae": "mean absolute error",
    "r2": "R2",
}
MINIMIZED = ("loss", "mae")  # the lower the better


def choose_metric(task: str, requested: Metric | None, numbers: int) -> Metric:
    """Returns the metric of a new sweep: the requested one, or the default of the task.

    The default of several numbers per image is R2, since their mean absolute errors have different units. Raises
    `UsageError` for a metric that the task does not have.
    """
    metrics = TASK_METRICS[task].metrics
    if requested is None:
        return "r2" if task == REGRESSION and numbers > 1 else metrics[0]
    if requested in get_args(Metric) and requested not in metrics:  # the configuration refuses unknown ones
        raise UsageError(
            f"the metric {requested} is not measured where each image has {TASKS[task].description}",
            f"use {', '.join(metrics[:-1])} or {metrics[-1]}",
        )
    return requested


def choose_shown_score(task: str, metric: Metric) -> Metric:
    """Returns the score that a table shows with its interval: the metric, or in place of the loss the main score."""
    return TASK_METRICS[task].metrics[0] if metric == "loss" else metric


def sort_value(metric: str, score: float) -> float:
    """Returns a value by which scores are sorted, the best first."""
    return score if metric in MINIMIZED else -score
