"""Train a classifier on labelled images, from nothing or from another model's weights.

DATA is a folder (train/ val/ test/, or one folder per class that is divided), a CSV or parquet of paths and labels,
or a built-in name (digits, cifar10, mnist, ...). Writes a run folder: the classifier, its curves, its confusion matrix
and what it looks at.
"""

import argparse
from pathlib import Path
from typing import Any

from vitrail.cli.loading import WHAT
from vitrail.cli.main import Answer
from vitrail.data.augment import Augment
from vitrail.model import ViTConfig
from vitrail.pretrained import beside
from vitrail.runs import train
from vitrail.train.recipes import DEFAULT, FIELDS, RECIPES, TRANSFER, Recipe
from vitrail.weights.sizes import SIZES


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options: a few of the verb's own, and every field of a recipe."""
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard files")
    parser.add_argument("--no-report", action="store_true", help="no report.html at the end")
    add_start(parser, out="the run folder (runs/NAME)", resume="go on with the run in --out")


def add_start(parser: argparse.ArgumentParser, out: str, resume: str) -> None:
    """The options of every verb that trains: what it starts from, where it writes, every field of a recipe."""
    from vitrail.cli.fields import add_fields

    parser.add_argument("--from", dest="model", metavar="MODEL", help=f"weights to start from: {WHAT}")
    parser.add_argument("--torch-files", action="store_true", help="let MODEL be plain tensors in torch's own files")
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"{', '.join(RECIPES)}, or a TOML or JSON file ({DEFAULT}; with --from {TRANSFER})",
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
        add_fields(parser, f"{title} (fields of the recipe)", kind, [name for name in FIELDS if FIELDS[name] == place])


def given_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of a recipe that were given."""
    given = vars(arguments)
    return {name: given[name] for name in (*FIELDS, "size") if name in given}


def scores_in_words(split: str, scores: dict[str, Any]) -> str:
    """Accuracy with its interval, and loss."""
    low, high = scores["accuracy_interval"]
    return (
        f"{split} accuracy {scores['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), "
        f"loss {scores['loss']:.4f}, {scores['images']} images"
    )


def run(arguments: argparse.Namespace) -> Answer:
    """Trains and says what came out."""
    finished = train(
        arguments.data,
        model=arguments.model,
        torch_files=arguments.torch_files,
        recipe=arguments.recipe,
        out=arguments.out,
        resume=arguments.resume,
        device=arguments.device,
        tensorboard=arguments.tensorboard,
        make_report=not arguments.no_report,
        check_data=not arguments.no_check,
        **given_fields(arguments),
    )
    shown = []
    for split in ("test", "validation"):
        if scores := finished.result.get(split):
            shown.append(scores_in_words(split, scores))
    if finished.result.get("probe"):
        shown += beside(finished.result["probe"])
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
