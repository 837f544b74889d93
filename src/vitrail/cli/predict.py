"""Say what is in images: the most probable classes of each file, or of every image below a folder.

A file that cannot be read gets a row that says why, and the exit code is 1.
"""

import argparse
from typing import Any

import torch

from vitrail.classifier import Classifier
from vitrail.cli.images import named_images
from vitrail.cli.loading import add_model, loaded_any
from vitrail.cli.main import Answer
from vitrail.console import bar
from vitrail.data.decode import ImageError
from vitrail.errors import UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_model(parser, onnx=True)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files or folders")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to name for each image")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images at a time")
    parser.add_argument("--fast", action="store_true", help="in bf16, weights packed: the same labels but for rounding")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (the best there is)")


def run(arguments: argparse.Namespace) -> Answer:
    """Predicts file by file, a batch at a time."""
    for name in ("top", "batch"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    classifier = loaded_any(arguments)
    if arguments.fast:
        if not isinstance(classifier, Classifier):
            raise UsageError("--fast is for vitrail's own runtime, not for an .onnx file", "leave it out")
        classifier = classifier.fast()
    paths = named_images(arguments.images)
    rows: list[dict[str, Any]] = []
    with bar("predicting", len(paths)) as progress:
        for at in range(0, len(paths), arguments.batch):
            some: list[dict[str, Any]] = [
                {"path": str(path), "top": [], "error": None} for path in paths[at : at + arguments.batch]
            ]
            pixels = []
            for row in some:
                try:
                    pixels.append(classifier.read(str(row["path"])))
                except ImageError as error:
                    row["error"] = error.reason
            readable = [row for row in some if row["error"] is None]
            if readable:
                for row, logits_Y in zip(readable, classifier.logits(torch.stack(pixels)), strict=True):
                    row["top"] = [vars(prediction) for prediction in classifier.ranked(logits_Y, arguments.top)]
            rows += some
            progress.tick(len(some))
    shown = []
    for row in rows:
        said = ", ".join(f"{p['label']} {p['probability']:.1%}" for p in row["top"])
        shown.append(f"{row['path']}: {said or 'unreadable: ' + str(row['error'])}")
    return Answer({"predictions": rows}, shown, code=1 if any(row["error"] for row in rows) else 0)
