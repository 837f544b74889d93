"""The main scores of a task: those of probes, and of teachers."""

from collections.abc import Mapping
from typing import Any, cast

from vitrail.evaluation.outcomes import AnyEvaluation
from vitrail.probe_documents import ProbeScores, TaskScores
from vitrail.tasks import GRADES, MULTI_LABEL, REGRESSION, SINGLE_LABEL

SCORES = {  # by task
    SINGLE_LABEL: ("accuracy",),
    MULTI_LABEL: ("map", "macro_f1", "micro_f1", "accuracy"),
    GRADES: ("accuracy", "quadratic_kappa"),
    REGRESSION: ("mae", "r2"),
}
SCORE_TITLES = {
    "map": "mAP",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "accuracy": "accuracy",
    "quadratic_kappa": "quadratic weighted kappa",
    "mae": "mean absolute error",
    "r2": "R2",
}


def summarize_scores(evaluation: AnyEvaluation | None) -> ProbeScores:
    """Returns the `SCORES` of the task with intervals, and the number of images; empty without an evaluation."""
    if evaluation is None:
        return {}
    return cast(ProbeScores, {**pick_scores(evaluation.summary()), "images": evaluation.images})


def pick_scores(summary: Mapping[str, Any]) -> TaskScores:
    """Returns the `SCORES` of the task of a summary, with intervals."""
    names = SCORES[summary.get("task", SINGLE_LABEL)]
    return cast(TaskScores, {key: summary[key] for name in names for key in (name, f"{name}_interval")})


def describe_probe_scores(scores: ProbeScores) -> str:
    """Returns the scores with their intervals as text; without a number of images."""
    values: dict[str, Any] = {**scores}
    parts = []
    for name, title in SCORE_TITLES.items():
        if name not in values:
            continue
        interval = values[f"{name}_interval"]
        ends = f" (95% interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
        title = "subset accuracy" if name == "accuracy" and "map" in values else title
        parts.append(f"{title} {values[name]:.4f}{ends}")
    return ", ".join(parts)
