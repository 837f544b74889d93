"""Train a classifier on labeled images, from scratch or from other weights.

Writes a run folder: the classifier, metrics, curves, the confusion matrix, attention maps and a report.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from vitrail.callbacks.names import LoggerName
from vitrail.cli.answer import Answer, ignore_closed_stdout, print_answer
from vitrail.cli.arguments import MODEL_HELP, PROGRAM_HELP, add_data, add_engine, count
from vitrail.cli.launch import answer_in_group, is_launched, launch
from vitrail.cli.parser import Parser
from vitrail.cli.recipe_options import add_training_options, recipe_changes
from vitrail.console import log
from vitrail.errors import UsageError
from vitrail.tasks import SINGLE_LABEL

if TYPE_CHECKING:
    from rich.table import Table

    from vitrail.documents import CrossValidationResult, RunResult
    from vitrail.runs.result import Run


SHORT_TITLES = {  # of the columns of a table
    "balanced accuracy": "balanced",
    "quadratic weighted kappa": "kappa",
    "mean error in grades": "grade error",
    "mean absolute error": "MAE",
    "root mean squared error": "RMSE",
}
TEACHER_OPTIONS = ("teacher", "unlabeled", "baseline")


def add_arguments(parser: Parser) -> None:
    add_data(parser)
    add_training_options(
        parser,
        out_help="the run folder (default: runs/NAME)",
        resume_help="continue the run in --out; start it if there is none",
    )
    parser.add_argument(
        "--processes", type=count(), metavar="COUNT", help="processes that train one model (default: 1)"
    )
    parser.add_argument(
        "--folds", type=count(2), metavar="COUNT",
        help="cross-validation: one run for each fold, and the scores of all out-of-fold predictions (default: off)",
    )  # fmt: skip
    parser.add_argument(
        "--final", action="store_true", help="with --folds: also train a model on all images (default: off)"
    )
    parser.add_argument("--no-report", action="store_true", help="write no report.html at the end (default: off)")
    parser.add_argument(
        "--logger", action="append", choices=get_args(LoggerName),
        help="also log to this tool, if it is installed; may be repeated (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--tensorboard", dest="logger", action="append_const", const="tensorboard",
        help="the same as --logger tensorboard (default: off)",
    )  # fmt: skip
    teacher = parser.add_argument_group("teacher")
    teacher.add_argument(
        "--teacher", metavar="MODEL",
        help=f"a trained model whose answers the student learns: {MODEL_HELP}, or {PROGRAM_HELP} (default: none)",
    )  # fmt: skip
    teacher.add_argument(
        "--unlabeled", "--unlabelled", metavar="FOLDER",
        help="with --teacher: more training images, for which only the teacher answers (default: none)",
    )  # fmt: skip
    teacher.add_argument(
        "--baseline", metavar="RUN",
        help="with --teacher: a run on the same data without a teacher, for the table at the end (default: none)",
    )  # fmt: skip
    group = parser.add_advanced_group("several processes")
    group.add_argument(
        "--fsdp", action="store_true", help="shard the model over the processes; needs --optimizer adamw (default: off)"
    )
    add_engine(group)
    group.add_argument(
        "--min-processes", type=count(), metavar="COUNT",
        help="with Ray: continue with this many processes, if others are lost (default: --processes)",
    )  # fmt: skip
    group.add_argument(
        "--restarts", type=count(0), metavar="COUNT", help="with Ray: restarts of lost processes (default: 3)"
    )


def run(arguments: argparse.Namespace) -> Answer | None:
    """Trains; of several processes, the first one returns the answer."""
    if arguments.folds is not None:
        return cross_validate_and_describe(arguments)
    if arguments.final:
        raise UsageError("--final is the last model of a cross-validation", "add --folds 5")
    if arguments.engine == "ray":
        return train_and_describe(arguments)
    if arguments.ray_address or arguments.min_processes or arguments.restarts is not None:
        raise UsageError("--ray-address, --min-processes and --restarts are for Ray", "add --engine ray")
    if arguments.processes is not None and not is_launched():
        return launch(arguments.command_line, arguments.processes)
    return answer_in_group(partial(train_and_describe, arguments))


def train_and_describe(arguments: argparse.Namespace) -> Answer:
    """Trains, on Ray if requested; returns the result as JSON and as text."""
    from vitrail.runs.finish import ReportInterrupted
    from vitrail.runs.result import ResultPrinter, log_result
    from vitrail.runs.train import train

    start: Callable[..., Run] = train
    show = log_result if arguments.json else print_result
    options: dict[str, Any] = {"callbacks": [ResultPrinter(show)]}
    if arguments.engine == "ray":
        from vitrail.runs.ray import train_on_ray as start

        max_processes = 2 if arguments.processes is None else arguments.processes
        min_processes = max_processes if arguments.min_processes is None else arguments.min_processes
        restarts = 3 if arguments.restarts is None else arguments.restarts
        options = {
            "processes": (min_processes, max_processes),
            "restarts": restarts,
            "ray_address": arguments.ray_address,
            "on_result": show,
        }
    try:
        run = start(
            arguments.data,
            fsdp=arguments.fsdp,
            **{name: getattr(arguments, name) for name in TEACHER_OPTIONS},
            **options,
            **training_options(arguments),
        )
    except ReportInterrupted as error:
        if not arguments.json:  # the scores are on stdout already
            raise
        log(str(error))
        return Answer({**error.run.to_json()}, code=error.exit_code)
    lines = [f"files are in {run.folder}"]
    for name, description in (
        ("classifier.safetensors", "the classifier"),
        ("report.html", "the report, for a browser"),
        ("classes.png", "some images of every class"),
        ("curves.png", "loss and accuracy by epoch"),
        ("confusion.png", "the confusion matrix"),
        ("predictions.png", "predicted against true numbers"),
        ("attention.png", "attention maps of test images"),
    ):
        if Path(run.folder, name).exists():
            lines.append(f"  {run.folder / name}  {description}")
    return Answer({**run.to_json()}, lines)


def training_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the keywords that one training and a cross-validation share."""
    return {
        "model": arguments.model,
        "torch_files": arguments.torch_files,
        "recipe": arguments.recipe,
        "out": arguments.out,
        "resume": arguments.resume,
        "device": arguments.device,
        "logger": arguments.logger,
        "report": not arguments.no_report,
        "pictures": not arguments.no_pictures,
        "check": not arguments.no_check,
        **recipe_changes(arguments),
    }


def cross_validate_and_describe(arguments: argparse.Namespace) -> Answer:
    """Trains the folds, one after the other; returns the scores as JSON and as a table."""
    if arguments.engine == "ray" or (arguments.processes or 1) > 1 or arguments.fsdp or is_launched():
        raise UsageError("--folds trains one fold after the other in one process", "leave out options for several")
    if any(getattr(arguments, name) for name in TEACHER_OPTIONS):
        raise UsageError("--folds compares recipes, and has no teacher", "leave out --teacher, or --folds")
    from vitrail.runs.cross_validation import cross_validate
    from vitrail.runs.fold_table import describe_cross_validation

    result = cross_validate(
        arguments.data,
        arguments.folds,
        final=arguments.final,
        **training_options(arguments),
    )
    document = result.to_json()
    shown = [make_fold_table(document), *describe_cross_validation(document)]
    shown.append(f"files are in {result.folder}: cross_validation.json, predictions.csv, and a run for each fold")
    if result.final:
        shown.append(f"the final model, trained on everything: {result.final.folder}")
    return Answer({**document}, shown)


def make_fold_table(result: CrossValidationResult) -> Table:
    """Returns a table with a row for each fold."""
    from rich.table import Table

    from vitrail.runs.fold_table import FOLD_SCORES

    scores = FOLD_SCORES[str(result.get("task", SINGLE_LABEL))]
    table = Table(
        "fold", "images", *(SHORT_TITLES.get(title, title) for title in scores.values()), "best epoch", box=None
    )
    for row in result["rows"]:
        cells = (format_score(cast(Mapping[str, float], row)[name]) for name in scores)
        best = "-" if row["best_epoch"] is None else str(row["best_epoch"])
        table.add_row(str(row["fold"]), str(row["images"]), *cells, best)
    return table


def format_score(score: float) -> str:
    """Returns a score with four decimals, or a large one with as many digits."""
    return f"{score:.4f}" if abs(score) < 10 else f"{score:.4g}"


def print_result(folder: Path, result: RunResult) -> None:
    """Prints the scores to stdout at once, before pictures and report are made."""
    from vitrail.runs.result import describe_result

    with ignore_closed_stdout():
        print_answer(Answer({**result}, list(describe_result(result))), as_json=False)
