"""Train a classifier on labelled images, from nothing or from another model's weights.

DATA is a folder (train/ val/ test/, or one folder per class that is divided), a CSV or parquet of paths and labels, a
built-in name (digits, cifar10, mnist, ...), tar shards (a folder of them, "out/train-{000000..000099}.tar",
s3://...), or hf:NAME (Hugging Face datasets). Writes a run folder: the classifier, its curves, its confusion matrix and
what it looks at.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitrail.cli.launch import end_with_parent, hand_back, launch, launched
from vitrail.cli.loading import WHAT
from vitrail.cli.main import Answer
from vitrail.console import log
from vitrail.data.augment import Augment
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluation.evaluation import describe_scored_images
from vitrail.model import ViTConfig
from vitrail.runs.finish import Run
from vitrail.runs.probes import describe_probes
from vitrail.runs.train import train
from vitrail.training.distributed import PeerLost
from vitrail.training.recipe import RECIPE_FIELDS, Recipe
from vitrail.training.recipes import DEFAULT_RECIPE, DEFAULT_TRANSFER_RECIPE, RECIPES
from vitrail.weights.sizes import SIZES


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options: a few of the verb's own, and every field of a recipe."""
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard files")
    parser.add_argument("--no-report", action="store_true", help="no report.html at the end")
    parser.add_argument("--processes", type=int, metavar="N", help="train one model by N processes")
    parser.add_argument(
        "--fsdp", action="store_true", help="shard the model over the processes, with --optimizer adamw"
    )
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="what starts them (this machine)")
    parser.add_argument("--ray-address", metavar="A", help="the Ray cluster (one of its own on this machine)")
    parser.add_argument("--min-processes", type=int, metavar="N", help="with ray: go on with as few as N of them")
    parser.add_argument("--restarts", type=int, metavar="N", help="with ray: start lost ones again so often (3)")
    add_start(parser, out="the run folder (runs/NAME)", resume="go on with the run in --out")


def add_start(parser: argparse.ArgumentParser, out: str, resume: str) -> None:
    """The options of every verb that trains: what it starts from, where it writes, every field of a recipe."""
    from vitrail.cli.fields import add_fields

    parser.add_argument("--from", dest="model", metavar="MODEL", help=f"weights to start from: {WHAT}")
    parser.add_argument("--torch-files", action="store_true", help="let MODEL be plain tensors in torch's own files")
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"{', '.join(RECIPES)}, or a TOML or JSON file ({DEFAULT_RECIPE}; with --from {DEFAULT_TRANSFER_RECIPE})",
    )
    parser.add_argument("--size", choices=list(SIZES), default=argparse.SUPPRESS, help="a named width, depth, heads")
    parser.add_argument("--out", metavar="DIR", help=out)
    parser.add_argument("--resume", action="store_true", help=resume)
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (the best there is)")
    parser.add_argument("--no-check", action="store_true", help="train without looking at the data before")
    for title, kind, place in (
        ("training", Recipe, "recipe"),
        ("augmentation", Augment, "augment"),
        ("model", ViTConfig, "model"),
    ):
        add_fields(
            parser,
            f"{title} (fields of the recipe)",
            kind,
            [name for name in RECIPE_FIELDS if RECIPE_FIELDS[name] == place],
        )


def given_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of a recipe that were given."""
    given = vars(arguments)
    return {name: given[name] for name in (*RECIPE_FIELDS, "size") if name in given}


def scores_in_words(split: str, scores: dict[str, Any]) -> str:
    """Accuracy with its interval, loss, and of how many images."""
    low, high = scores["accuracy_interval"]
    return (
        f"{split} accuracy {scores['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), "
        f"loss {scores['loss']:.4f}, {describe_scored_images(scores)}"
    )


def run(arguments: argparse.Namespace) -> Answer | None:
    """Trains and says what came out, once, however many processes train."""
    first = int(os.environ.get("RANK", 0)) == 0
    if arguments.engine == "ray":
        return trained(arguments)
    if arguments.ray_address or arguments.min_processes or arguments.restarts is not None:
        raise UsageError("--ray-address, --min-processes and --restarts are for Ray", "add --engine ray")
    if arguments.processes is not None and not launched():
        return launch(arguments.line, arguments.processes)
    answer: Answer | VitrailError
    try:
        if launched():
            end_with_parent()
        answer = trained(arguments)
    except PeerLost as error:  # no answer: the launcher starts the group again, or says how it ended
        log(f"warning: {error}")
        raise SystemExit(error.exit_code) from None
    except VitrailError as error:  # all processes end with it, and one says it
        if first and not launched():
            raise
        answer = error
    if launched():
        if first:
            hand_back(answer)
        return None
    if isinstance(answer, VitrailError):
        raise SystemExit(answer.exit_code)
    return answer if first else None


def trained(arguments: argparse.Namespace) -> Answer:
    """Trains, or has Ray train, and says what came out as JSON and in words."""
    start: Callable[..., Run] = train
    options: dict[str, Any] = {}
    if arguments.engine == "ray":
        from vitrail.runs.ray import train_on_ray as start

        most = 2 if arguments.processes is None else arguments.processes
        least = most if arguments.min_processes is None else arguments.min_processes
        restarts = 3 if arguments.restarts is None else arguments.restarts
        options = {"processes": (least, most), "restarts": restarts, "ray_address": arguments.ray_address}
    finished = start(
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
        **given_fields(arguments),
    )
    shown = []
    for split in ("test", "validation"):
        if scores := finished.result.get(split):
            shown.append(scores_in_words(split, scores))
    if finished.result.get("probe"):
        shown += describe_probes(finished.result["probe"])
    if finished.result.get("verdict"):
        shown.append(finished.result["verdict"])
    shown.append(f"trained in {finished.result['seconds']:.0f} s; everything is in {finished.folder}")
    for name, what in (
        ("classifier.safetensors", "the classifier"),
        ("report.html", "everything worth knowing of it, to open in a browser"),
        ("classes.png", "some images of every class"),
        ("curves.png", "loss and accuracy by epoch"),
        ("confusion.png", "what it mistakes for what"),
        ("attention.png", "what it looks at"),
    ):
        if Path(finished.folder, name).exists():
            shown.append(f"  {finished.folder / name}  {what}")
    return Answer(finished.to_json(), shown)
