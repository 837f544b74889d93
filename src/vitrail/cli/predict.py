"""Say what is in images: the most probable classes of each file, or of every image below a folder or in tar shards.

A file that cannot be read gets a row that says why, and the exit code is 1.

With --out the rows go into a folder of parquet or CSV files, in memory that does not grow, for as many images as there
are: folders, tar shards, files, and tables (.csv, .tsv, .parquet) with a column of paths. Work that was stopped or
killed goes on with the same command and --resume; nothing that is done is done again.
"""

import argparse
from dataclasses import fields
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from vitrail.classifier import Classifier, top_predictions
from vitrail.cli.images import named_images
from vitrail.cli.loading import add_model, loaded_any
from vitrail.cli.main import Answer
from vitrail.console import escape_control_characters, progress_bar
from vitrail.data.decode import ImageError
from vitrail.errors import UsageError
from vitrail.prediction import PredictSummary, predict_all
from vitrail.prediction.options import PredictOptions

SHOWN = 10  # classes in the table of what was found


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_model(parser, onnx=True, threads="as many as cores; 1 with --out")
    parser.add_argument(
        "images", metavar="SOURCE", nargs="+", help="image files, folders, tar shards; with --out tables too"
    )
    parser.add_argument("--top", type=int, metavar="N", help="classes to name for each image (5; 1 with --out)")
    parser.add_argument("--batch", dest="batch_size", type=int, default=64, metavar="N", help="images at a time")
    parser.add_argument(
        "--fast",
        dest="precision",
        action="store_const",
        const="bf16",
        default="fp32",
        help="in bf16, weights packed: the same labels but for rounding",
    )
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (the best there is)")
    many = parser.add_argument_group("for many images")
    given: dict[str, Any] = {"default": argparse.SUPPRESS}
    many.add_argument("--out", metavar="FOLDER", help="write the rows into part files there")
    many.add_argument("--format", choices=["parquet", "csv"], help="what the parts are (parquet)", **given)
    many.add_argument("--embedding", action="store_true", help="add the model's features as a column", **given)
    many.add_argument("--resume", action="store_true", help="go on with what was begun in FOLDER", **given)
    many.add_argument("--processes", type=int, metavar="N", help="model processes on the CPU (one per core)", **given)
    many.add_argument("--workers", type=int, metavar="N", help="data-loading workers for a GPU (cores - 1)", **given)
    many.add_argument(
        "--part-images", type=int, metavar="N", help="images in a part, which is what a kill costs a process", **given
    )
    many.add_argument(
        "--slice", type=slice_of, metavar="I/N", help="of N machines do the I-th one's share, into one FOLDER", **given
    )
    many.add_argument("--engine", choices=["local", "ray"], help="what runs the parts (local)", **given)
    many.add_argument("--ray-address", metavar="A", help="the Ray cluster (one of its own on this machine)", **given)


def slice_of(word: str) -> tuple[int, int]:
    """2/8 -> (2, 8)."""
    number, of = word.split("/")
    return int(number), int(of)


slice_of.__name__ = "I/N"  # what argparse calls it in a sentence


def run(arguments: argparse.Namespace) -> Answer:
    """Predicts into a folder, or file by file, a batch at a time."""
    names = {each.name for each in fields(PredictOptions)}
    if arguments.out is not None:
        asked = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
        return into_folder(predict_all(arguments.model, arguments.images, arguments.out, **asked))
    for name in (
        "format",
        "embedding",
        "resume",
        "processes",
        "workers",
        "part_images",
        "slice",
        "engine",
        "ray_address",
    ):
        if name in vars(arguments):
            raise UsageError(f"--{name.replace('_', '-')} is for predictions into a folder", "add --out FOLDER")
    arguments.top = 5 if arguments.top is None else arguments.top
    for option, name in (("--top", "top"), ("--batch", "batch_size")):
        if getattr(arguments, name) < 1:
            raise UsageError(f"{option} is {getattr(arguments, name)}; it must be at least 1")
    return at_once(arguments)


def into_folder(predicted: PredictSummary) -> Answer:
    """What came of it, with the classes that were found most."""
    document = predicted.to_json()
    lines: list[Any] = [f"{predicted.images:,} images in {predicted.parts_done:,} parts: {predicted.out}"]
    if predicted.resumed:
        lines.append(f"{predicted.resumed:,} of the parts were there before")
    if predicted.images_now:
        lines.append(f"{predicted.seconds:,.1f} seconds, {document['images_per_second']:,.0f} images a second")
    if predicted.labels:
        table = Table("class", "images", "", box=None, header_style="bold")
        most = list(predicted.labels.items())
        for name, images in most[:SHOWN]:
            length = round(30 * images / most[0][1])
            table.add_row(Text(escape_control_characters(name)), f"{images:,}", "█" * length)
        if len(most) > SHOWN:
            table.add_row(f"and {len(most) - SHOWN:,} more", f"{sum(n for _, n in most[SHOWN:]):,}", "")
        lines.append(table)
    if predicted.unreadable:
        path, error = predicted.examples[0]
        lines.append(f"{predicted.unreadable:,} images could not be read, for instance {path}: {error}")
    if not predicted.complete:
        lines.append(f"the other slices of {predicted.parts:,} parts are not all there yet")
    return Answer(document, lines, code=1 if predicted.unreadable else 0)


def at_once(arguments: argparse.Namespace) -> Answer:
    """Predicts images that fit into one answer."""
    classifier = loaded_any(arguments)
    classifier.require_classes()
    if arguments.precision == "bf16":
        if not isinstance(classifier, Classifier):
            raise UsageError("--fast is for vitrail's own runtime, not for an .onnx file", "leave it out")
        classifier = classifier.fast()
    images = named_images(arguments.images)
    rows: list[dict[str, Any]] = []
    with progress_bar("predicting", len(images)) as progress:
        for at in range(0, len(images), arguments.batch_size):
            some: list[dict[str, Any]] = [
                {"path": image.path, "top": [], "error": None} for image in images[at : at + arguments.batch_size]
            ]
            pixels = []
            for image, row in zip(images[at : at + arguments.batch_size], some, strict=True):
                try:
                    pixels.append(classifier.read_image(image.read(classifier.preprocess.channels)))
                except ImageError as error:
                    row["error"] = error.reason
            readable = [row for row in some if row["error"] is None]
            if readable:
                for row, logits_Y in zip(readable, classifier.logits(torch.stack(pixels)), strict=True):
                    predictions = top_predictions(logits_Y, classifier.classes, arguments.top)
                    row["top"] = [vars(prediction) for prediction in predictions]
            rows += some
            progress.advance(len(some))
    shown = []
    for row in rows:
        said = ", ".join(f"{p['label']} {p['probability']:.1%}" for p in row["top"])
        shown.append(f"{row['path']}: {said or 'unreadable: ' + str(row['error'])}")
    return Answer({"predictions": rows}, shown, code=1 if any(row["error"] for row in rows) else 0)
