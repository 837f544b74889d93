"""The result of a run: its scores, and the lines that describe them."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vitrail.callbacks.base import Callback, CallbackState
from vitrail.classifier import Classifier
from vitrail.console import log
from vitrail.documents import RunDocument, RunResult, Scores, TeachingRow
from vitrail.evaluation.evaluation import describe_averages, describe_scored_images
from vitrail.evaluation.grades import describe_grades
from vitrail.evaluation.group_scores import describe_groups
from vitrail.evaluation.multi_label_evaluation import describe_label_averages
from vitrail.evaluation.numbers import describe_numbers
from vitrail.module_classifier import ModuleClassifier, TorchClassifier
from vitrail.runs.probes import describe_probes
from vitrail.tasks import MULTI_LABEL, REGRESSION, TASKS
from vitrail.training.advice import describe_early_stop

SCORE_NAMES = {"map": "mAP", "quadratic_kappa": "quadratic weighted kappa", "r2": "R2", "accuracy": "accuracy"}
ResultCallback = Callable[[Path, RunResult], None]  # gets the run folder and the content of result.json


def scored_splits(result: RunResult) -> list[tuple[str, Scores]]:
    """Returns the splits that have scores, with these."""
    splits = {"test": result.get("test"), "validation": result.get("validation")}
    return [(name, scores) for name, scores in splits.items() if scores]


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its classifier and its scores."""

    folder: Path
    classifier: Classifier
    result: RunResult

    def __repr__(self) -> str:
        """A line with the scores; `result` has everything."""
        name = TASKS[self.classifier.task].score
        values = {split: cast(Mapping[str, float], scores)[name] for split, scores in scored_splits(self.result)}
        scores = ", ".join(f"{split} {SCORE_NAMES[name]} {value:.4f}" for split, value in values.items())
        return f"Run({str(self.folder)!r}: {scores or 'no score'})"

    def _repr_html_(self) -> str:
        """The line of `repr` and, if the run has a report, the report in a frame, for a notebook."""
        text, report = f"<p>{html.escape(repr(self))}</p>", self.folder / "report.html"
        if not report.is_file():
            return text
        page = html.escape(report.read_text(encoding="utf-8"))
        return f'{text}<iframe title="Report" srcdoc="{page}" style="border: 0; height: 40em; width: 100%"></iframe>'

    def to_json(self) -> RunDocument:
        """Returns the folder and the scores."""
        return {"run": str(self.folder), **self.result}


@dataclass(frozen=True, repr=False)
class ModuleRun(Run):
    """A finished run whose model is not a ViT."""

    classifier: ModuleClassifier  # type: ignore[assignment]  # `train` tells by its arguments which run it returns


def make_run(folder: Path, classifier: TorchClassifier, result: RunResult) -> Run:
    """Returns the run of a classifier."""
    if isinstance(classifier, ModuleClassifier):
        return ModuleRun(folder, classifier, result)
    return Run(folder, classifier, result)


def describe_scores(split: str, scores: Scores) -> str:
    """Returns the scores with intervals, loss and number of images as text."""
    if scores.get("task") == MULTI_LABEL:
        averages = describe_label_averages({**scores})
        return f"{split} {averages}, loss {scores['loss']:.4f}, {describe_scored_images(scores)}"
    if scores.get("task") == REGRESSION:
        return f"{split} {describe_numbers({**scores})}, {describe_scored_images(scores)}"
    low, high = scores["accuracy_interval"]
    return (
        f"{split} accuracy {scores['accuracy']:.4f} (95% interval {low:.4f} to {high:.4f}), "
        f"loss {scores['loss']:.4f}, {describe_scored_images(scores)}"
    )


def describe_result(result: RunResult) -> list[str]:
    """Returns the scores of a run, those of its probes, the verdict and the time of training, as lines."""
    scored = scored_splits(result)
    lines = [describe_scores(split, scores) for split, scores in scored]
    lines += [describe_groups(scores["groups"]) for _, scores in scored if "groups" in scores]
    lines += [describe_averages(scores) for _, scores in scored if "balanced_accuracy" in scores]
    lines += [describe_grades(scores) for _, scores in scored if "quadratic_kappa" in scores]
    if probe := result.get("probe"):
        lines += describe_probes(probe)
    if teaching := result.get("teaching"):
        lines += describe_teaching(teaching)
    if verdict := result.get("verdict"):
        lines.append(verdict)
    if stopped := result.get("stopped_early"):
        lines.append(describe_early_stop(stopped))
    return [*lines, f"trained in {result['seconds']:.0f} s"]


def describe_teaching(rows: Sequence[TeachingRow]) -> list[str]:
    """Returns the table as lines of text."""
    scored: list[dict[str, Any]] = [{**row} for row in rows]
    names = [name for name in SCORE_NAMES if any(name in row for row in scored)]
    shown = names[0] if names else "accuracy"  # the score of the task comes first
    lines = [f"{'':28}{SCORE_NAMES[shown] + ' (95% interval)':27}{'images/s':>10}{'parameters':>14}{'float32':>11}"]
    for row, values in zip(rows, scored, strict=True):
        scores = "-"
        if shown in values:
            interval = values[f"{shown}_interval"]
            ends = f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
            scores = f"{values[shown]:.4f}{ends}"
        n = row.get("parameters")
        size = f"{n:>14,}{4 * n / 1e6:>8.1f} MB" if n is not None else f"{'-':>14}{'-':>11}"
        lines.append(f"{row['model']:28}{scores:27}{row['images_per_second']:>10,.0f}{size}")
    return lines


def log_result(folder: Path, result: RunResult) -> None:
    """Prints the result to stderr."""
    for line in describe_result(result):
        log(line)


class ResultPrinter(Callback):
    """Prints the result of a run as soon as it is saved, before pictures and report are made."""

    def __init__(self, show: ResultCallback = log_result):
        self.show = show
        self.has_shown = False

    def on_evaluation_end(self, state: CallbackState) -> None:
        if state.result is not None:
            self.has_shown = True
            self.show(state.folder, cast(RunResult, dict(state.result)))

    def on_run_end(self, state: CallbackState) -> None:
        if state.result is not None and not self.has_shown:  # a run without scores
            self.show(state.folder, cast(RunResult, dict(state.result)))
