"""Score a classifier on labelled images: accuracy with its interval, per class, and what it mistakes for what.

--report writes report.html, one file that opens offline, and report.json with every number in it.

DATA is what `train` takes. A folder with splits is scored on test, else on validation, and where that chose the weights
it is said; a source that training divided, on exactly the images that were kept back.
"""

import argparse
from dataclasses import replace
from itertools import count
from pathlib import Path

from rich.table import Table
from rich.text import Text

from vitrail.classifier import ARTIFACT_NAME, BaseClassifier, Classifier
from vitrail.cli.loading import add_model, loaded_any
from vitrail.cli.main import Answer
from vitrail.console import escape_control_characters, progress_bar
from vitrail.errors import UsageError
from vitrail.evaluation.calibration import calibrate
from vitrail.evaluation.evaluation import Evaluation, evaluate, open_scored_images, open_splits
from vitrail.evaluation.figures import draw_confusion_matrix
from vitrail.evaluation.metrics import confusion_matrix
from vitrail.evaluation.outcome import compute_outcome
from vitrail.files import write_json
from vitrail.runs.folder import RunFolder
from vitrail.weights.artifact import is_artifact


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_model(parser, onnx=True)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--report", action="store_true", help="write report.html and report.json (into reports/NAME)")
    parser.add_argument("--corruptions", action="store_true", help="in the report: accuracy on corrupted images too")
    parser.add_argument(
        "--fit-temperature", action="store_true",
        help="first fit the temperature on DATA's validation images and keep it in MODEL",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=256, metavar="N", help="images at a time")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (the best there is)")
    parser.add_argument("--skip-unreadable", action="store_true", help="score without images that cannot be read")
    parser.add_argument("--out", metavar="DIR", help="also write evaluation.json and confusion.png there")


def run(arguments: argparse.Namespace) -> Answer:
    """Scores and shows the numbers."""
    if arguments.batch < 1:
        raise UsageError(f"--batch is {arguments.batch}; it must be at least 1")
    if arguments.corruptions and not arguments.report:
        raise UsageError("--corruptions is a part of the report", "add --report")
    folder = place_for_report(arguments) if arguments.report else Path(arguments.out) if arguments.out else None
    classifier = loaded_any(arguments)
    if not isinstance(classifier, Classifier) and (arguments.report or arguments.fit_temperature):
        raise UsageError(
            f"{arguments.model} is a program: its weights cannot be looked into or changed",
            "--report and --fit-temperature take the classifier that it was made from",
        )
    skip = arguments.skip_unreadable
    scored = open_scored_images(classifier, arguments.data, skip_unreadable=skip)
    images = scored.images
    shown: list[object] = []
    if arguments.fit_temperature and isinstance(classifier, Classifier):
        classifier = with_temperature(classifier, arguments)
    with progress_bar("evaluating", len(images)) as progress:
        evaluation = evaluate(
            classifier,
            images,
            description=scored.description,
            optimistic=scored.optimistic,
            batch_size=arguments.batch,
            on_batch=progress.advance,
            skip_unreadable=skip,
        )
    document = evaluation.to_json()
    low, high = evaluation.accuracy_interval
    shown += [
        scored.description,
        f"accuracy {evaluation.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}), top-5 {document['top5']:.4f}, "
        f"loss {document['loss']:.4f}, calibration error {document['ece']:.4f}",
        temperature_said(classifier),
    ]
    if refused := document["unreadable_files"]:
        shown.append(
            f"{len(refused)} of {len(images)} images could not be read and count for nothing, for instance "
            f"{refused[0]['path']}: {refused[0]['error']}"
        )
    table = Table("class", "images", "precision", "recall", "F1", box=None, header_style="bold")
    for name, scores in document["per_class"].items():
        numbers = ["-" if scores[k] is None else f"{scores[k]:.3f}" for k in ("precision", "recall", "f1")]
        table.add_row(Text(escape_control_characters(name)), str(scores["images"]), *numbers)
    shown.append(table)
    if document["most_confused"]:
        pairs = [f"{p['true']} taken for {p['predicted']} ({p['images']})" for p in document["most_confused"][:5]]
        shown.append(f"most confused: {', '.join(pairs)}")
    if folder:
        write_json(folder / "evaluation.json", document)
        draw_confusion_matrix(confusion_matrix(evaluation.outcome), classifier.classes, folder / "confusion.png")
        shown.append(f"written: {folder / 'evaluation.json'}, {folder / 'confusion.png'}")
    if arguments.report:
        assert folder is not None and isinstance(classifier, Classifier)
        report = report_on(classifier, evaluation, arguments, folder)
        document["report"] = str(report)
        shown.append(f"the report: {report}")
    return Answer(document, shown)


def place_for_report(arguments: argparse.Namespace) -> Path:
    """The folder for the report: --out, or reports/NAME with the first free number; a report that is there stays."""
    if arguments.out:
        folder = Path(arguments.out)
        if (folder / "report.html").exists() or (folder / "report.json").exists():
            raise UsageError(f"{folder} has a report already", "choose another --out, or leave it out")
        return folder
    name = Path(arguments.model).resolve().stem if Path(arguments.model).exists() else Path(arguments.model).name
    return next(path for n in count(1) if not (path := Path("reports", name if n == 1 else f"{name}-{n}")).exists())


def with_temperature(classifier: Classifier, arguments: argparse.Namespace) -> Classifier:
    """The classifier with a temperature fitted on validation images, which its artefact now keeps.

    Raises `UsageError` where MODEL is no artefact, or the data have none beside those that are scored.
    """
    path = Path(arguments.model)
    path = path / ARTIFACT_NAME if path.is_dir() and not (path / "config.json").is_file() else path
    if not (path.is_file() and is_artifact(path)):
        raise UsageError(f"{arguments.model} is no artefact of yours to change", "save it first")
    skip = arguments.skip_unreadable
    split, parts = open_splits(classifier, arguments.data, skip)
    if split == "validation" or "validation" not in parts:
        raise UsageError(
            f"{arguments.data} has no validation images beside those that are scored",
            "the temperature is never fitted on the images it is judged by",
        )
    plain = replace(classifier, temperature=1.0)
    with progress_bar("fitting the temperature", len(parts["validation"])) as progress:
        held_out = compute_outcome(
            plain, parts["validation"], batch_size=arguments.batch, on_batch=progress.advance, skip_unreadable=skip
        )
    fitted = calibrate(held_out)
    origin = {**classifier.origin, "calibration": fitted.to_json()}
    mended = replace(classifier, temperature=fitted.temperature, origin=origin)
    mended.save(path)
    return mended


def temperature_said(classifier: BaseClassifier) -> str:
    """How the classifier's sureness was mended, if it was."""
    known = classifier.origin.get("calibration")
    if not known:
        return f"temperature {classifier.temperature:.4g}" + (
            "; none has been fitted (--fit-temperature does it)" if classifier.temperature == 1 else ""
        )
    if known.get("reason"):
        return f"temperature 1: {known['reason']}"
    return f"temperature {classifier.temperature:.4g}, fitted on {known['images']} {known['fitted_on']} images"


def report_on(classifier: Classifier, evaluation: Evaluation, arguments: argparse.Namespace, folder: Path) -> Path:
    """Writes the report and returns where the page is."""
    from vitrail.report import SampleSizes, Subject, report_command, write_report
    from vitrail.report.collect import REPORT_STEPS

    skip = arguments.skip_unreadable
    split, parts = open_splits(classifier, arguments.data, skip)
    named = {"--corruptions": arguments.corruptions, "--skip-unreadable": skip, "--torch-files": arguments.torch_files}
    subject = Subject(
        classifier,
        evaluation.outcome.readable_images(parts[split]),
        evaluation,
        split=split,
        splits=parts,
        training_metrics=RunFolder(Path(arguments.model)).load_metrics() if Path(arguments.model).is_dir() else [],
        model_path=str(arguments.model),
        command=report_command(arguments.model, arguments.data, [option for option, given in named.items() if given]),
        skip_unreadable=skip,
    )
    depth = SampleSizes.for_model(classifier, corruptions=arguments.corruptions)
    with progress_bar("writing the report", REPORT_STEPS + arguments.corruptions) as progress:
        write_report(subject, folder, sizes=depth, on_step=lambda doing: progress.advance(note=doing))
    return folder / "report.html"
