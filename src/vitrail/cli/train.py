"""Train a classifier on labeled images, from scratch or from other weights.

Writes a run folder: the classifier, metrics, curves, the confusion matrix, attention maps and a report.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import add_data, add_engine, count
from vitrail.cli.launch import end_with_parent, is_launched, launch, return_answer
from vitrail.cli.parser import Parser
from vitrail.cli.recipe_options import add_training_options, recipe_changes
from vitrail.console import log
from vitrail.errors import UsageError, VitrailError

if TYPE_CHECKING:
    from vitrail.runs.finish import Run


def add_arguments(parser: Parser) -> None:
    add_data(parser)
    add_training_options(
        parser, out_help="the run folder (default: runs/NAME)", resume_help="continue the run in --out"
    )
    parser.add_argument(
        "--processes", type=count(), metavar="COUNT", help="processes that train one model (default: 1)"
    )
    parser.add_argument("--no-report", action="store_true", help="write no report.html at the end (default: off)")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard files (default: off)")
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


def describe_scores(split: str, scores: dict[str, Any]) -> str:
    """Returns accuracy with its interval, loss and number of images as text."""
    from vitrail.evaluation.evaluation import describe_scored_images

    low, high = scores["accuracy_interval"]
    return (
        f"{split} accuracy {scores['accuracy']:.4f} (95% interval {low:.4f} to {high:.4f}), "
        f"loss {scores['loss']:.4f}, {describe_scored_images(scores)}"
    )


def run(arguments: argparse.Namespace) -> Answer | None:
    """Trains; of several processes, the first one returns the answer."""
    from vitrail.training.distributed import PeerLost

    is_first = int(os.environ.get("RANK", 0)) == 0
    if arguments.engine == "ray":
        return train_and_describe(arguments)
    if arguments.ray_address or arguments.min_processes or arguments.restarts is not None:
        raise UsageError("--ray-address, --min-processes and --restarts are for Ray", "add --engine ray")
    if arguments.processes is not None and not is_launched():
        return launch(arguments.command_line, arguments.processes)
    answer: Answer | VitrailError
    try:
        if is_launched():
            end_with_parent()
        answer = train_and_describe(arguments)
    except PeerLost as error:  # no answer: the launcher restarts the group, or reports how it ended
        log(f"warning: {error}")
        raise SystemExit(error.exit_code) from None
    except VitrailError as error:  # all processes raise it, and one reports it
        if is_first and not is_launched():
            raise
        answer = error
    if is_launched():
        if is_first:
            return_answer(answer)
        return None
    if isinstance(answer, VitrailError):
        raise SystemExit(answer.exit_code)
    return answer if is_first else None


def train_and_describe(arguments: argparse.Namespace) -> Answer:
    """Trains, on Ray if requested; returns the result as JSON and as text."""
    from vitrail.runs.probes import describe_probes
    from vitrail.runs.train import train

    start: Callable[..., Run] = train
    options: dict[str, Any] = {}
    if arguments.engine == "ray":
        from vitrail.runs.ray import train_on_ray as start

        max_processes = 2 if arguments.processes is None else arguments.processes
        min_processes = max_processes if arguments.min_processes is None else arguments.min_processes
        restarts = 3 if arguments.restarts is None else arguments.restarts
        options = {
            "processes": (min_processes, max_processes),
            "restarts": restarts,
            "ray_address": arguments.ray_address,
        }
    run = start(
        arguments.data,
        model=arguments.model,
        torch_files=arguments.torch_files,
        recipe=arguments.recipe,
        out=arguments.out,
        resume=arguments.resume,
        device=arguments.device,
        tensorboard=arguments.tensorboard,
        report=not arguments.no_report,
        check=not arguments.no_check,
        fsdp=arguments.fsdp,
        **options,
        **recipe_changes(arguments),
    )
    lines = []
    for split in ("test", "validation"):
        if scores := run.result.get(split):
            lines.append(describe_scores(split, scores))
    if run.result.get("probe"):
        lines += describe_probes(run.result["probe"])
    if run.result.get("verdict"):
        lines.append(run.result["verdict"])
    lines.append(f"trained in {run.result['seconds']:.0f} s; files are in {run.folder}")
    for name, description in (
        ("classifier.safetensors", "the classifier"),
        ("report.html", "the report, for a browser"),
        ("classes.png", "some images of every class"),
        ("curves.png", "loss and accuracy by epoch"),
        ("confusion.png", "the confusion matrix"),
        ("attention.png", "attention maps of test images"),
    ):
        if Path(run.folder, name).exists():
            lines.append(f"  {run.folder / name}  {description}")
    return Answer(run.to_json(), lines)
