"""Predict the classes or labels of images: files, all images below a folder, tar shards, or a table of paths.

A file that cannot be read gets a row with the error, and the exit code is 1.

With --out, the rows go into parquet or CSV files in a folder, in constant memory for any number of images. If the work
is stopped, the same command with --resume completes it, and keeps the files that are done.

With --format coco, fiftyone or label-studio, --out is a file or folder that these tools import, with the most probable
class of each image.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import (
    add_batch_size,
    add_device,
    add_model,
    add_threads,
    count,
    load_in_precision,
)
from vitrail.cli.augmentation import add_tta
from vitrail.cli.parser import Parser
from vitrail.errors import UsageError
from vitrail.tasks import TASKS, refuse_task

if TYPE_CHECKING:
    from vitrail.cli.images import InputImage
    from vitrail.image_predictions import Predictions
    from vitrail.prediction import PredictSummary
    from vitrail.weights.unlike import UnlikeFacts

MAX_CLASSES_SHOWN = 10
MAX_UNREADABLE_SHOWN = 10
TABLE_FORMATS = ("parquet", "csv")
OTHER_FORMATS = ("coco", "fiftyone", "label-studio")  # those of `annotation_files`
FOLDER_OPTIONS = {  # name in the namespace -> option; only with --out
    "format": "--format", "embedding": "--embedding", "resume": "--resume", "processes": "--processes",
    "workers": "--workers", "part_images": "--images-per-part", "slice": "--slice", "engine": "--engine",
    "ray_address": "--ray-address",
}  # fmt: skip


def add_arguments(parser: Parser) -> None:
    add_model(parser, programs=True)
    parser.add_argument("images", metavar="SOURCE", nargs="+", help="image files, folders, tar shards, tables of paths")
    parser.add_argument(
        "--top", type=count(), metavar="COUNT", help="most probable classes per image (default: 5; with --out, 1)"
    )
    parser.add_argument(
        "--rank-for-labeling", type=count(), metavar="COUNT",
        help="instead print this number of images to label next: uncertain ones, unlike each other (default: off)",
    )  # fmt: skip
    add_tta(parser, "evaluate --tta measures whether it pays")
    add_batch_size(parser, 64)
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32",
        help="number format; bf16 also packs the weights, and stays fp32 on devices without bf16 units (default: fp32)",
    )  # fmt: skip
    parser.add_argument(
        "--fast", dest="precision", action="store_const", const="bf16", default=argparse.SUPPRESS,
        help="the same as --precision bf16 (default: off)",
    )  # fmt: skip
    add_threads(parser, "the number of cores; with --out, 1")
    add_device(parser)
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="write files into this folder; with --format coco or fiftyone, this file (default: print the rows)",
    )
    group = parser.add_advanced_group("with --out")
    suppressed: dict[str, Any] = {"default": argparse.SUPPRESS}
    group.add_argument(
        "--format", choices=[*TABLE_FORMATS, *OTHER_FORMATS],
        help="tables (parquet, csv), or what another tool imports (default: parquet)",
        **suppressed,
    )  # fmt: skip
    group.add_argument(
        "--embedding", action="store_true", help="add the model's features as a column (default: off)", **suppressed
    )
    group.add_argument(
        "--resume", action="store_true", help="complete predictions that were stopped (default: off)", **suppressed
    )
    group.add_argument(
        "--processes",
        type=count(),
        metavar="COUNT",
        help="model processes on a CPU (default: one per core)",
        **suppressed,
    )
    group.add_argument(
        "--workers",
        type=count(),
        metavar="COUNT",
        help="data-loading processes for a GPU (default: cores - 1)",
        **suppressed,
    )
    group.add_argument(
        "--images-per-part", dest="part_images", type=count(), metavar="COUNT",
        help="images per output file; if a process dies, the file it works on is lost (default: 64 to 1,984)",
        **suppressed,
    )  # fmt: skip
    group.add_argument(
        "--slice", type=parse_slice, metavar="I/N",
        help="predict the I-th of N equal shares, one per machine, into one folder (default: 1/1)", **suppressed,
    )  # fmt: skip
    group.add_argument(
        "--engine", choices=["local", "ray"], help="this machine or a Ray cluster (default: local)", **suppressed
    )
    group.add_argument(
        "--ray-address", metavar="ADDRESS",
        help="address of the Ray cluster (default: start one on this machine)", **suppressed,
    )  # fmt: skip


def parse_slice(text: str) -> tuple[int, int]:
    """Returns (2, 8) for 2/8."""
    number, total = text.split("/")
    return int(number), int(total)


parse_slice.__name__ = "I/N"  # argparse prints it in errors


def run(arguments: argparse.Namespace) -> Answer:
    options = vars(arguments)
    if arguments.rank_for_labeling:
        return rank_for_labeling(arguments)
    if arguments.out is None:
        for name, option in FOLDER_OPTIONS.items():
            if name in options:
                raise UsageError(f"{option} is for predictions into a folder", "add --out FOLDER")
        return predict_and_print(arguments)
    if arguments.tta and options.get("format") not in OTHER_FORMATS:
        raise UsageError("--tta is for predictions that are printed", "leave out --out")
    if options.get("format") not in OTHER_FORMATS:
        return predict_into_folder(arguments)
    for name, option in {**FOLDER_OPTIONS, "top": "--top"}.items():
        if name != "format" and options.get(name) is not None:
            raise UsageError(
                f"{option} is for tables, and {arguments.format} has the best class of each image only",
                "use --format parquet or csv",
            )
    return predict_for_other_tool(arguments)


def rank_for_labeling(arguments: argparse.Namespace) -> Answer:
    """Returns the images to label next; raises `UsageError` for options that it does not have."""
    from vitrail.cli.images import list_input_images
    from vitrail.cli.labeling import rank_images

    for name, option in {**FOLDER_OPTIONS, "out": "--out", "top": "--top", "tta": "--tta"}.items():
        if getattr(arguments, name, None) is not None:
            raise UsageError(f"--rank-for-labeling prints a ranking and has no {option}", f"leave out {option}")
    return rank_images(arguments, list_input_images(arguments.images))


def predict_into_folder(arguments: argparse.Namespace) -> Answer:
    from dataclasses import fields

    from vitrail.console import log
    from vitrail.data.pixel_range import describe_over_8_bits
    from vitrail.prediction import predict_all
    from vitrail.prediction.options import PredictOptions

    names = {each.name for each in fields(PredictOptions)}
    options = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    summary = predict_all(arguments.model, arguments.images, arguments.out, **options)
    if summary.over_8_bits_example:
        log(f"warning: {describe_over_8_bits(summary.over_8_bits, summary.over_8_bits_example)}")
    return Answer({**summary.to_json()}, describe_summary(summary), code=1 if summary.unreadable else 0)


def describe_summary(summary: PredictSummary) -> list[Any]:
    """Returns what was predicted, with the most frequent classes, as lines and a table."""
    from rich.table import Table
    from rich.text import Text

    from vitrail.console import escape_control_characters

    lines: list[Any] = [f"{summary.images:,} images in {summary.parts_done:,} parts: {summary.out}"]
    if summary.resumed:
        lines.append(f"{summary.resumed:,} parts were complete before")
    if summary.images_now:
        rate = summary.to_json()["images_per_second"]
        lines.append(f"{summary.seconds:,.1f} seconds, {rate:,.0f} images per second")
    if summary.labels:
        table = Table("class", "images", "", box=None, header_style="bold")
        counts = list(summary.labels.items())
        for name, images in counts[:MAX_CLASSES_SHOWN]:
            bar = "█" * round(30 * images / counts[0][1])
            table.add_row(Text(escape_control_characters(name)), f"{images:,}", bar)
        if rest := counts[MAX_CLASSES_SHOWN:]:
            table.add_row(f"and {len(rest):,} more", f"{sum(n for _, n in rest):,}", "")
        lines.append(table)
    if summary.unreadable:
        path, error = summary.examples[0]
        lines.append(f"{summary.unreadable:,} images could not be read, for example {path}: {error}")
    if not summary.complete:
        lines.append(f"the other slices of the {summary.parts:,} parts are not complete yet")
    return lines


def predict_for_other_tool(arguments: argparse.Namespace) -> Answer:
    from pathlib import Path

    from vitrail.annotation_files import OWN_FILE_FORMATS, check_annotation_request, require_own_file
    from vitrail.cli.images import list_input_images
    from vitrail.files import base_name

    out = Path(arguments.out)
    check_annotation_request(arguments.format, out)
    images = list_input_images(arguments.images)
    for image in images if arguments.format in OWN_FILE_FORMATS else ():
        if image.member is not None:
            require_own_file(image.path, arguments.format)
    predictions = predict_images(arguments, images, needs="annotations")
    predictions.save(out, format=arguments.format, model_name=base_name(arguments.model))
    unreadable = [
        {"path": str(predictions.paths[i]), "error": reason} for i, reason in sorted(predictions.errors.items())
    ]
    document = {"out": str(out), "format": arguments.format, "images": len(predictions), "unreadable_files": unreadable}
    lines = [f"{len(predictions) - len(unreadable):,} images: {out}"]
    lines += [f"{each['path']}: unreadable: {each['error']}" for each in unreadable[:MAX_UNREADABLE_SHOWN]]
    if more := len(unreadable[MAX_UNREADABLE_SHOWN:]):
        lines.append(f"and {more:,} more that could not be read")
    return Answer(document, lines, code=1 if unreadable else 0)


def predict_and_print(arguments: argparse.Namespace) -> Answer:
    from vitrail.cli.images import list_input_images
    from vitrail.weights.unlike import describe_unlike

    predictions = predict_images(arguments, list_input_images(arguments.images), arguments.top or 5)
    facts = predictions.unlike_facts
    has_numbers = TASKS[predictions.task].answer == "numbers"
    rows: list[dict[str, Any]] = []
    lines = []
    for each in predictions:
        answer = {"numbers": each.numbers} if has_numbers else {"top": [vars(prediction) for prediction in each]}
        unlike = {} if facts is None else {"unlike": each.unlike}
        rows.append({"path": each.path, **answer, "error": each.error, **unlike})
        if has_numbers:
            text = ", ".join(f"{name} {number:.6g}" for name, number in each.numbers.items())
        else:
            text = ", ".join(f"{prediction.label} {prediction.probability:.1%}" for prediction in each)
        text = text or (f"unreadable: {each.error}" if each.error else "no label")
        lines.append(f"{each.path}: {text}{describe_quantile(each.unlike, facts)}")
    return Answer(
        {"predictions": rows, "unlike": {**describe_unlike(facts)}}, lines, code=1 if predictions.errors else 0
    )


def describe_quantile(unlike: float | None, facts: UnlikeFacts | None) -> str:
    """Returns the end of an image's line: nothing, unless the image is unlike the validation images."""
    if unlike is None or facts is None or unlike < facts.threshold:
        return ""
    return f"; unlike the validation images (quantile {unlike:.3f}, threshold {facts.threshold:g})"


def predict_images(
    arguments: argparse.Namespace, images: list[InputImage], top: int = 1, needs: str | None = None
) -> Predictions:
    """Returns the predictions for the images; warns of images of more than 8 bits.

    Raises `UsageError` if the task of the classifier refuses what the answer `needs`.
    """
    from vitrail.cli.images import predict_input_images
    from vitrail.evaluation.augmented import AugmentedClassifier

    classifier = load_in_precision(arguments)
    classifier.require_classes()
    for each in filter(None, (needs, "top" if arguments.top else None)):
        refuse_task(classifier.task, each)
    if arguments.tta:
        classifier = AugmentedClassifier(classifier, arguments.tta)
    return predict_input_images(classifier, images, arguments.batch_size, top)
