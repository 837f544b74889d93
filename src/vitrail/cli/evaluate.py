"""Score a classifier on labelled images: accuracy with its interval, per class, and what it mistakes for what.

DATA is what `train` takes. A folder with splits is scored on test; a source that training divided, on exactly the
images that were kept back.
"""

import argparse
from pathlib import Path

from rich.table import Table
from rich.text import Text

from vitrail.cli.loading import add_model, loaded
from vitrail.cli.main import Answer
from vitrail.console import bar, visible
from vitrail.errors import UsageError
from vitrail.evaluate.evaluation import evaluate, images_to_score
from vitrail.evaluate.figures import draw_confusion
from vitrail.evaluate.metrics import confusion
from vitrail.files import write_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_model(parser)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--batch", type=int, default=256, metavar="N", help="images at a time")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (the best there is)")
    parser.add_argument("--skip-unreadable", action="store_true", help="score without images that cannot be read")
    parser.add_argument("--out", metavar="DIR", help="also write evaluation.json and confusion.png there")


def run(arguments: argparse.Namespace) -> Answer:
    """Scores and shows the numbers."""
    if arguments.batch < 1:
        raise UsageError(f"--batch is {arguments.batch}; it must be at least 1")
    classifier = loaded(arguments)
    skip = arguments.skip_unreadable
    images, said = images_to_score(classifier, arguments.data, skip_unreadable=skip)
    with bar("evaluating", len(images)) as progress:
        evaluation = evaluate(
            classifier, images, said=said, batch=arguments.batch, tick=progress.tick, skip_unreadable=skip
        )
    document = evaluation.to_json()
    low, high = evaluation.accuracy_interval
    shown: list[object] = [
        f"{said}",
        f"accuracy {evaluation.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}), top-5 {document['top5']:.4f}, "
        f"loss {document['loss']:.4f}, calibration error {document['ece']:.4f}",
    ]
    if refused := document["unreadable_files"]:
        shown.append(
            f"{len(refused)} of {len(images)} images could not be read and count for nothing, for instance "
            f"{refused[0]['path']}: {refused[0]['error']}"
        )
    table = Table("class", "images", "precision", "recall", "F1", box=None, header_style="bold")
    for name, scores in document["per_class"].items():
        numbers = ["-" if scores[k] is None else f"{scores[k]:.3f}" for k in ("precision", "recall", "f1")]
        table.add_row(Text(visible(name)), str(scores["images"]), *numbers)
    shown.append(table)
    if document["most_confused"]:
        pairs = [f"{p['true']} taken for {p['predicted']} ({p['images']})" for p in document["most_confused"][:5]]
        shown.append(f"most confused: {', '.join(pairs)}")
    if arguments.out:
        folder = Path(arguments.out)
        write_json(folder / "evaluation.json", document)
        draw_confusion(confusion(evaluation.outcome), classifier.classes, folder / "confusion.png")
        shown.append(f"written: {folder / 'evaluation.json'}, {folder / 'confusion.png'}")
    return Answer(document, shown)
