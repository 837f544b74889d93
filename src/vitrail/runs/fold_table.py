"""The scores of a cross-validation: those of each fold, their mean and deviation, and those of all predictions."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from vitrail.documents import CrossValidationResult, FoldRow
from vitrail.evaluation.evaluation import describe_averages
from vitrail.evaluation.grades import describe_grades
from vitrail.evaluation.multi_label import MultiLabelOutcome
from vitrail.evaluation.multi_label_evaluation import describe_label_averages
from vitrail.evaluation.numbers import NumberOutcome, describe_numbers
from vitrail.evaluation.outcome import Outcome
from vitrail.evaluation.outcomes import EVALUATIONS, AnyEvaluation, AnyOutcome
from vitrail.runs.fold_plan import Plan
from vitrail.runs.result import Run
from vitrail.tasks import GRADES, MULTI_LABEL, REGRESSION, SINGLE_LABEL

CLASS_SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "loss": "loss",
}
FOLD_SCORES: dict[str, dict[str, str]] = {  # task -> the scores of a fold, with their titles; the main one first
    SINGLE_LABEL: CLASS_SCORES,
    MULTI_LABEL: {
        "map": "mAP",
        "macro_f1": "macro F1",
        "micro_f1": "micro F1",
        "accuracy": "subset accuracy",
        "loss": "loss",
    },
    GRADES: {"quadratic_kappa": "quadratic weighted kappa", "grade_mae": "mean error in grades"} | CLASS_SCORES,
    REGRESSION: {"mae": "mean absolute error", "rmse": "root mean squared error", "r2": "R2", "loss": "loss"},
}
INTERVAL = (
    "95%, of the out-of-fold predictions of all images together. It covers the choice of images, not the variation "
    "between trainings. The folds share training images, so their deviation gives no interval."
)


def join_outcomes(outcomes: Sequence[AnyOutcome]) -> AnyOutcome:
    """Returns the outcomes of all folds as one. Labels are predicted by the thresholds of the image's own fold."""
    first = outcomes[0]
    joined: AnyOutcome = replace(
        first,
        paths=[path for each in outcomes for path in each.paths],
        labels=np.concatenate([each.labels for each in outcomes]),
        logits=np.concatenate([each.logits for each in outcomes]),
        unreadable=tuple(error for each in outcomes for error in each.unreadable),
        groups=None if first.groups is None else tuple(group for each in outcomes for group in each.groups or ()),
        distances=None,
    )
    if isinstance(joined, MultiLabelOutcome):
        thresholds = [each.thresholds_of_images for each in outcomes if isinstance(each, MultiLabelOutcome)]
        return replace(joined, thresholds=(), image_thresholds=np.concatenate(thresholds))
    return joined


def evaluate_joined(plan: Plan, outcomes: Sequence[AnyOutcome]) -> AnyEvaluation:
    """Returns the evaluation of all out-of-fold predictions."""
    description = f"the {len(plan.listing)} images of {plan.source.name}, out of fold"
    evaluation: AnyEvaluation = EVALUATIONS[plan.source.task](join_outcomes(outcomes), description)
    return evaluation


def summarize(plan: Plan, runs: Sequence[Run], evaluation: AnyEvaluation) -> CrossValidationResult:
    """Returns the scores of the folds, their mean and standard deviation, and those of all predictions together."""
    names = FOLD_SCORES[plan.source.task]
    rows = [fold_row(fold, run, names) for fold, run in enumerate(runs, 1)]
    values = {name: np.array([cast(Mapping[str, float], row)[name] for row in rows]) for name in names}
    result = {
        "data": evaluation.description,
        "folds": len(runs),
        "recipe": plan.recipe.name,
        **evaluation.summary(),
        "interval": INTERVAL,
        "interval_units": "images" if plan.listing.groups is None else "groups",
        "fold_mean": {name: float(each.mean()) for name, each in values.items()},
        "fold_sd": {name: float(each.std(ddof=1)) for name, each in values.items()},
        "rows": rows,
        "seconds": round(sum(run.result["seconds"] for run in runs), 3),
    }
    return cast(CrossValidationResult, result)


def fold_row(fold: int, run: Run, names: Mapping[str, str]) -> FoldRow:
    """Returns the row of a fold, with these scores."""
    scores = cast(Mapping[str, float], run.result["test"])
    row = {
        "fold": fold,
        "run": str(run.folder),
        "images": scores["images"],
        **{name: scores[name] for name in names},
        "best_epoch": run.result.get("best_epoch"),
        "seconds": run.result["seconds"],
    }
    return cast(FoldRow, row)


def format_predictions(outcomes: Sequence[AnyOutcome]) -> str:
    """Returns the out-of-fold predictions as CSV, with a row for each image."""
    columns, make_rows = CSV_FORMS[type(outcomes[0])]
    has_groups = outcomes[0].groups is not None
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["path", "fold", *columns(outcomes[0].classes), *(["group"] if has_groups else [])])
    for fold, outcome in enumerate(outcomes, 1):
        groups = [[group] for group in outcome.groups] if outcome.groups else [[]] * len(outcome.paths)
        for path, cells, group in zip(outcome.paths, make_rows(outcome), groups, strict=True):
            writer.writerow([path, fold, *cells, *group])
    return buffer.getvalue()


def class_rows(outcome: Outcome) -> Iterator[list[str]]:
    """Yields the true class, the predicted one and its probability, of each image."""
    classes = outcome.classes
    for true, predicted, probability in zip(outcome.labels, outcome.predicted, outcome.confidence, strict=True):
        yield [classes[true], classes[predicted], f"{probability:.6f}"]


def label_set_rows(outcome: MultiLabelOutcome) -> Iterator[list[str]]:
    """Yields the true labels and the predicted ones, as "cat;dog", and the probability of every label."""
    classes = np.array(outcome.classes, dtype=object)
    for true, predicted, probabilities in zip(outcome.labels, outcome.predicted, outcome.probabilities, strict=True):
        yield [*(";".join(classes[each.astype(bool)]) for each in (true, predicted)), *map(digits, probabilities)]


def number_rows(outcome: NumberOutcome) -> Iterator[list[str]]:
    """Yields each true number with the predicted one."""
    for true, predicted in zip(outcome.labels, outcome.predicted, strict=True):
        yield [digits(number) for pair in zip(true, predicted, strict=True) for number in pair]


def digits(number: float) -> str:
    """Returns a number with as many digits as single precision has."""
    return f"{number:.9g}"


CSV_FORMS: dict[type, tuple[Callable[[Sequence[str]], list[str]], Callable[[Any], Iterator[list[str]]]]] = {
    Outcome: (lambda classes: ["true", "predicted", "probability"], class_rows),
    MultiLabelOutcome: (
        lambda classes: ["true", "predicted", *(f"probability_{name}" for name in classes)],
        label_set_rows,
    ),
    NumberOutcome: (
        lambda names: [f"{which}_{name}" for name in names for which in ("true", "predicted")],
        number_rows,
    ),
}  # fmt: skip


def describe_cross_validation(result: CrossValidationResult) -> list[str]:
    """Returns the lines below the table of folds: means, and the scores of all predictions with their intervals."""
    task = str(result.get("task", SINGLE_LABEL))
    means = ", ".join(
        f"{title} {result['fold_mean'][name]:.4g} (sd {result['fold_sd'][name]:.4g})"
        if task == REGRESSION
        else f"{title} {result['fold_mean'][name]:.4f} (sd {result['fold_sd'][name]:.4f})"
        for name, title in FOLD_SCORES[task].items()
    )
    scope = f"of other {result['interval_units']}; not of other trainings"
    pooled = f"all {result['images']} out-of-fold predictions: "
    lines = [f"mean of {result['folds']} folds: {means}"]
    if task in (MULTI_LABEL, REGRESSION):
        describe = describe_label_averages if task == MULTI_LABEL else describe_numbers
        return [*lines, f"{pooled}{describe({**result})}", f"the intervals are {scope}"]
    low, high = result["accuracy_interval"]
    lines.append(f"{pooled}accuracy {result['accuracy']:.4f} (95% interval {low:.4f} to {high:.4f}, {scope})")
    lines.append(describe_averages(result))
    return [*lines, describe_grades(result)] if task == GRADES else lines
