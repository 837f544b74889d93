"""Train a classifier on labelled images, from nothing or from another model's weights.

DATA is a folder (train/ val/ test/, or one folder per class that is divided), a CSV or parquet of paths and labels, a
built-in name (digits, cifar10, mnist, ...), tar shards (a folder of them, "out/train-{000..099}.tar", s3://...), or
hf:NAME (Hugging Face datasets). Writes a run folder: the classifier, its curves, its confusion matrix and what it looks
at.
"""

import argparse
from pathlib import Path

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
    from vitrail.cli.fields import add_fields

    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--from", dest="model", metavar="MODEL", help=f"weights to start from: {WHAT}")
    parser.add_argument("--torch-files", action="store_true", help="let MODEL be plain tensors in torch's own files")
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"{', '.join(RECIPES)}, or a TOML or JSON file ({DEFAULT}; with --from {TRANSFER})",
    )
    parser.add_argument("--size", choices=list(SIZES), default=argparse.SUPPRESS, help="a named width, depth, heads")
    parser.add_argument("--out", metavar="DIR", help="the run folder (runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (the best there is)")
    parser.add_argument("--no-check", action="store_true", help="train without looking at the data before")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard files")
    parser.add_argument("--no-report", action="store_true", help="no report.html at the end")
    for title, kind, place in (
        ("training", Recipe, "recipe"),
        ("augmentation", Augment, "augment"),
        ("model", ViTConfig, "model"),
    ):
        add_fields(parser, f"{title} (fields of the recipe)", kind, [name for name in FIELDS if FIELDS[name] == place])


def run(arguments: argparse.Namespace) -> Answer:
    """Trains and says what came out."""
    given = vars(arguments)
    changes = {name: given[name] for name in (*FIELDS, "size") if name in given}
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
        **changes,
    )
    shown = []
    for split in ("test", "validation"):
        if scores := finished.result.get(split):
            low, high = scores["accuracy_interval"]
            shown.append(
                f"{split} accuracy {scores['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), "
                f"loss {scores['loss']:.4f}, {scores['images']} images"
            )
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
