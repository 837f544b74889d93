"""Score a classifier on labeled images: accuracy with its interval, scores per class, confusion, calibration.

A source with splits is scored on the test split, else on validation. A source that training divided is scored on
exactly the images that were held out. --unlike SOURCE says how well images of other things are told from those that
were scored. --report writes one HTML file that opens offline, and report.json with its numbers.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import count as count_up
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import (
    add_batch_size,
    add_data,
    add_device,
    add_group_pattern,
    add_model,
    add_shown_channels,
    add_skip_unreadable,
    add_threads,
    load_any_classifier,
    open_validation,
    require_classifier,
    show_channels,
)
from vitrail.cli.augmentation import add_tta, choose_augmentation, describe_augmentation
from vitrail.cli.parser import Parser
from vitrail.cli.unlike import describe_unlike_scores, list_outside_images, measure_unlike
from vitrail.errors import UsageError
from vitrail.tasks import refuse_task

if TYPE_CHECKING:
    from rich.table import Table

    from vitrail.classifier import BaseClassifier, Classifier
    from vitrail.evaluation.evaluation import Evaluation
    from vitrail.evaluation.outcomes import AnyEvaluation


def add_arguments(parser: Parser) -> None:
    add_model(parser, programs=True)
    add_data(parser)
    parser.add_argument(
        "--report", action="store_true", help="write report.html and report.json (default: off; into reports/NAME)"
    )
    parser.add_argument(
        "--corruptions", action="store_true", help="add accuracy on corrupted images to the report (default: off)"
    )
    add_shown_channels(parser)
    parser.add_argument(
        "--fit-temperature", action="store_true",
        help="first fit temperature and thresholds on DATA's validation images and save them in MODEL (default: off)",
    )  # fmt: skip
    parser.add_argument(
        "--unlike", metavar="SOURCE",
        help="a folder, image or tar shard of other things: how well are they told from DATA? (default: not measured)",
    )  # fmt: skip
    parser.add_argument(
        "--fit-unlike", action="store_true",
        help="first fit how unlike an image is on DATA's validation images and save it in MODEL (default: off)",
    )  # fmt: skip
    parser.add_argument(
        "--metric", action="append", default=[], metavar="NAME",
        help="also compute this metric: balanced_accuracy, macro_f1 or one of a plugin; repeatable (default: none)",
    )  # fmt: skip
    add_group_pattern(parser)
    add_tta(parser, "used if it pays on DATA's validation images")
    add_batch_size(parser, 256)
    add_threads(parser)
    add_device(parser)
    add_skip_unreadable(parser)
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="also write evaluation.json and a picture there (default: off)",
    )


def run(arguments: argparse.Namespace) -> Answer:
    from vitrail.console import progress_bar
    from vitrail.evaluation.evaluation import Evaluation, open_scored_images
    from vitrail.evaluation.metrics import check_metrics
    from vitrail.evaluation.numbers import NumberEvaluation
    from vitrail.evaluation.outcomes import evaluate_any

    check_metrics(arguments.metric)
    if arguments.corruptions and not arguments.report:
        raise UsageError("--corruptions adds to the report", "add --report")
    if arguments.shown_channels and not arguments.report:
        raise UsageError("--shown-channels is for the pictures of the report", "add --report")
    folder = choose_report_folder(arguments) if arguments.report else Path(arguments.out) if arguments.out else None
    outside = list_outside_images(arguments.unlike)
    classifier = load_any_classifier(arguments)
    for option in ("corruptions", "metric", "fit_temperature", "unlike"):
        if getattr(arguments, option):
            refuse_task(classifier.task, option)
    if arguments.corruptions:
        classifier.preprocess.refuse_bands("corruptions are for 8-bit gray and color images", "leave out --corruptions")
    if arguments.report and arguments.tta:
        raise UsageError("the report is of the classifier without --tta", "leave out one of --report and --tta")
    for option in ("report", "fit_temperature", "fit_unlike"):
        if getattr(arguments, option):
            require_classifier(classifier, arguments.model, f"--{option.replace('_', '-')}")
    if arguments.shown_channels:
        classifier.preprocess.with_shown(arguments.shown_channels)  # fails before any work
    scored = open_scored_images(
        classifier, arguments.data, arguments.skip_unreadable, group_pattern=arguments.group_pattern
    )
    if arguments.fit_temperature or arguments.fit_unlike:
        classifier = fit_on_validation(require_classifier(classifier, arguments.model, "--fit-temperature"), arguments)
    answering, augmentation = choose_augmentation(classifier, arguments)
    with progress_bar("evaluating", len(scored.images)) as progress:
        evaluation = evaluate_any(
            answering,
            scored.images,
            description=scored.description,
            optimistic=scored.optimistic,
            batch_size=arguments.batch_size,
            on_batch=progress.advance,
            skip_unreadable=arguments.skip_unreadable,
            metrics=arguments.metric,
        )
    if arguments.unlike:
        unlike = measure_unlike(answering, evaluation.outcome, outside, arguments)
        evaluation = replace(evaluation, unlike=unlike)
    answer = Answer({**evaluation.to_json(), "left_out": [each.sentence for each in scored.left_out]})
    if isinstance(evaluation, NumberEvaluation):
        answer.shown = describe_number_scores(answer.document, len(scored.images))
    elif isinstance(evaluation, Evaluation):
        answer.shown = describe_scores(evaluation, answer.document, classifier, len(scored.images))
    else:
        answer.shown = describe_label_scores(answer.document, classifier, len(scored.images))
    answer.shown += [*describe_unlike_scores(evaluation.unlike), *describe_augmentation(augmentation)]
    if augmentation:
        answer.document["augmentation"] = {**augmentation}
    if folder:
        write_evaluation(evaluation, classifier, folder, answer)
    if arguments.report:
        assert folder is not None
        reported = require_classifier(classifier, arguments.model, "--report")
        reported = show_channels(reported, arguments.shown_channels)  # the saved model keeps its own
        report = write_html_report(reported, evaluation, arguments, folder)
        answer.document["report"] = str(report)
        answer.shown.append(f"report: {report}")
    return answer


def choose_report_folder(arguments: argparse.Namespace) -> Path:
    """Returns --out, or the first free folder of reports/NAME, reports/NAME-2, ...; existing reports are kept."""
    from vitrail.files import base_name

    if arguments.out:
        folder = Path(arguments.out)
        if (folder / "report.html").exists() or (folder / "report.json").exists():
            raise UsageError(f"{folder} has a report already", "choose another --out, or leave it out")
        return folder
    name = base_name(arguments.model)
    names = (name if n == 1 else f"{name}-{n}" for n in count_up(1))
    return next(path for path in (Path("reports", each) for each in names) if not path.exists())


def fit_on_validation(classifier: Classifier, arguments: argparse.Namespace) -> Classifier:
    """Returns the classifier with what the arguments fit on validation images, after saving it in its artifact.

    Raises `UsageError` if MODEL is not an artifact, or if the data has no validation images besides the scored ones.
    """
    from vitrail.classifier import ARTIFACT_NAME
    from vitrail.console import progress_bar
    from vitrail.evaluation.fitting import calibrate_classifier, with_unlike
    from vitrail.evaluation.outcomes import compute_any_outcome
    from vitrail.weights.artifact import is_artifact

    path = Path(arguments.model)
    path = path / ARTIFACT_NAME if path.is_dir() and not (path / "config.json").is_file() else path
    if not (path.is_file() and is_artifact(path)):
        raise UsageError(f"{arguments.model} is not an artifact that can be changed", "save it as an artifact first")
    skip = arguments.skip_unreadable
    validation = open_validation(classifier, arguments, "nothing is ever fitted on the images that it is scored on")
    if arguments.fit_temperature:
        uncalibrated = replace(classifier, temperature=1.0)
        with progress_bar("fitting the temperature", len(validation)) as progress:
            outcome = compute_any_outcome(
                uncalibrated,
                validation,
                batch_size=arguments.batch_size,
                on_batch=progress.advance,
                skip_unreadable=skip,
            )
        classifier = calibrate_classifier(classifier, outcome)
    if arguments.fit_unlike:
        with progress_bar("fitting how unlike an image is", len(validation)) as progress:
            classifier, fitted = with_unlike(
                classifier,
                validation,
                batch_size=arguments.batch_size,
                on_batch=progress.advance,
                skip_unreadable=skip,
            )
        if fitted.reason:
            raise UsageError(f"how unlike an image is cannot be fitted: {fitted.reason}", "add validation images")
    classifier.save(path)
    return classifier


def describe_scores(
    evaluation: Evaluation, document: dict[str, Any], classifier: BaseClassifier, listed: int
) -> list[Any]:
    """Returns the scores as lines and a table; `listed` is the number of images with the unreadable ones."""
    from vitrail.evaluation.evaluation import describe_averages
    from vitrail.evaluation.grades import GradeEvaluation, describe_grades
    from vitrail.evaluation.group_scores import describe_groups

    low, high = evaluation.accuracy_interval
    ece_low, ece_high = document["ece_interval"]
    top5 = f", top-5 {document['top5']:.4f}" if "top5" in document else ""
    lines: list[Any] = [
        evaluation.description,
        f"accuracy {evaluation.accuracy:.4f} (95% interval {low:.4f} to {high:.4f}){top5}, "
        f"loss {document['loss']:.4f}, calibration error {document['ece_corrected']:.4f} (95% interval "
        f"{ece_low:.4f} to {ece_high:.4f})",
        describe_averages(document),
        *([describe_grades(evaluation.grades)] if isinstance(evaluation, GradeEvaluation) else []),
        *([describe_groups(document["groups"])] if "groups" in document else []),
        describe_temperature(classifier),
    ]
    lines += [f"{name} {value:.4f}" for name, value in evaluation.metrics.items()]
    lines += describe_unreadable(document, listed)
    lines.append(make_class_table(document))
    if document["most_confused"]:
        pairs = [f"{p['true']} as {p['predicted']} ({p['images']})" for p in document["most_confused"][:5]]
        lines.append(f"most confused: {', '.join(pairs)}")
    return lines


def describe_unreadable(document: dict[str, Any], listed: int) -> list[str]:
    """Returns a line on the images that were skipped, if there are any."""
    unreadable = document["unreadable_files"]
    if not unreadable:
        return []
    first = f"{unreadable[0]['path']}: {unreadable[0]['error']}"
    return [f"{len(unreadable)} of {listed} images could not be read and were skipped, for example {first}"]


def describe_label_scores(document: dict[str, Any], classifier: BaseClassifier, listed: int) -> list[Any]:
    """Returns the scores on images with several labels as lines and a table."""
    from vitrail.evaluation.multi_label_evaluation import describe_label_averages

    return [
        document["data"],
        describe_label_averages(document),
        f"loss {document['loss']:.4f}, mean calibration error of the labels {document['ece']:.4f}",
        describe_temperature(classifier),
        *describe_unreadable(document, listed),
        make_label_table(document),
    ]


def describe_number_scores(document: dict[str, Any], listed: int) -> list[Any]:
    """Returns the errors of predicted numbers as lines and a table."""
    from rich.table import Table
    from rich.text import Text

    from vitrail.console import escape_control_characters
    from vitrail.evaluation.numbers import describe_numbers

    columns = ("number", "mean absolute error", "95% interval", "root mean square", "R2", "95% interval", "mean error")
    table = Table(*columns, box=None, header_style="bold")
    for name, scores in document["per_number"].items():
        intervals = [
            "-" if scores[key] is None else "{:.4g} to {:.4g}".format(*scores[key])
            for key in ("mae_interval", "r2_interval")
        ]
        numbers = [f"{scores[key]:.4g}" for key in ("mae", "rmse", "r2", "mean_error")]
        cells = (numbers[0], intervals[0], numbers[1], numbers[2], intervals[1], numbers[3])
        table.add_row(Text(escape_control_characters(name)), *cells)
    return [document["data"], describe_numbers(document), *describe_unreadable(document, listed), table]


def make_label_table(document: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from vitrail.console import escape_control_characters

    columns = ("label", "images", "AP", "precision", "recall", "F1", "95% interval", "threshold", "ECE")
    table = Table(*columns, box=None, header_style="bold")
    for name, scores in document["per_class"].items():
        numbers = ["-" if scores[k] is None else f"{scores[k]:.3f}" for k in ("ap", "precision", "recall", "f1")]
        interval = "-" if scores["f1_interval"] is None else "{:.3f} to {:.3f}".format(*scores["f1_interval"])
        others = (interval, f"{scores['threshold']:.3f}", f"{scores['ece_corrected']:.3f}")
        table.add_row(Text(escape_control_characters(name)), str(scores["images"]), *numbers, *others)
    return table


def make_class_table(document: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from vitrail.console import escape_control_characters

    table = Table("class", "images", "precision", "recall", "F1", box=None, header_style="bold")
    for name, scores in document["per_class"].items():
        numbers = ["-" if scores[k] is None else f"{scores[k]:.3f}" for k in ("precision", "recall", "f1")]
        table.add_row(Text(escape_control_characters(name)), str(scores["images"]), *numbers)
    return table


def describe_temperature(classifier: BaseClassifier) -> str:
    """Returns the temperature and where it was fitted."""
    calibration: dict[str, Any] | None = classifier.origin.get("calibration")  # type: ignore[assignment]
    if not calibration:
        hint = " (not fitted; --fit-temperature fits it)" if classifier.temperature == 1 else ""
        return f"temperature {classifier.temperature:.4g}{hint}"
    if calibration.get("reason"):
        return f"temperature 1 (not fitted: {calibration['reason']})"
    images = f"{calibration['images']} {calibration['fitted_on']} images"
    return f"temperature {classifier.temperature:.4g}, fitted on {images}"


def write_evaluation(evaluation: AnyEvaluation, classifier: BaseClassifier, folder: Path, answer: Answer) -> None:
    """Writes evaluation.json into a folder, and confusion.png of classes or predictions.png of numbers.

    Adds them to the answer.
    """
    from vitrail.evaluation.evaluation import Evaluation
    from vitrail.evaluation.figures import draw_confusion_matrix, draw_predictions
    from vitrail.evaluation.metrics import confusion_matrix
    from vitrail.evaluation.numbers import NumberEvaluation
    from vitrail.files import write_json

    write_json(folder / "evaluation.json", answer.document)
    if isinstance(evaluation, NumberEvaluation):
        draw_predictions(evaluation.outcome, folder / "predictions.png")
        answer.shown.append(f"written: {folder / 'evaluation.json'}, {folder / 'predictions.png'}")
        return
    if not isinstance(evaluation, Evaluation):
        answer.shown.append(f"written: {folder / 'evaluation.json'}")
        return
    draw_confusion_matrix(confusion_matrix(evaluation.outcome), classifier.classes, folder / "confusion.png")
    answer.shown.append(f"written: {folder / 'evaluation.json'}, {folder / 'confusion.png'}")


def write_html_report(
    classifier: Classifier, evaluation: AnyEvaluation, arguments: argparse.Namespace, folder: Path
) -> Path:
    """Writes the report and returns the page's path."""
    from vitrail.console import progress_bar
    from vitrail.evaluation.evaluation import open_splits
    from vitrail.evaluation.multi_label_evaluation import MultiLabelEvaluation
    from vitrail.evaluation.numbers import NumberEvaluation
    from vitrail.report import SampleSizes, Subject, report_command, write_report
    from vitrail.report.collect import REPORT_STEPS
    from vitrail.report.label_report import STEPS, LabelSubject, write_label_report
    from vitrail.report.number_report import STEPS as NUMBER_STEPS
    from vitrail.report.number_report import NumberSubject, write_number_report
    from vitrail.runs.folder import RunFolder

    skip = arguments.skip_unreadable
    split, splits = open_splits(classifier, arguments.data, skip, group_pattern=arguments.group_pattern)
    flags = {"--corruptions": arguments.corruptions, "--skip-unreadable": skip, "--torch-files": arguments.torch_files}
    run = RunFolder(Path(arguments.model)) if Path(arguments.model).is_dir() else None
    options = [flag for flag, is_on in flags.items() if is_on]
    for option in ("group_pattern", "shown_channels"):
        value = getattr(arguments, option)
        options += [f"--{option.replace('_', '-')}", value] if value else []
    command = report_command(arguments.model, arguments.data, options)
    if isinstance(evaluation, MultiLabelEvaluation):
        images = evaluation.outcome.readable_images(splits[split])
        labels = LabelSubject(classifier, images, evaluation, str(arguments.model), command)
        with progress_bar("writing the report", STEPS) as progress:
            write_label_report(labels, folder, lambda step: progress.advance(note=step))
        return folder / "report.html"
    if isinstance(evaluation, NumberEvaluation):
        images = evaluation.outcome.readable_images(splits[split])
        numbers = NumberSubject(classifier, images, evaluation, str(arguments.model), command)
        with progress_bar("writing the report", NUMBER_STEPS) as progress:
            write_number_report(numbers, folder, lambda step: progress.advance(note=step))
        return folder / "report.html"
    subject = Subject(
        classifier,
        evaluation.outcome.readable_images(splits[split]),
        evaluation,
        split=split,
        splits=splits,
        training_metrics=run.load_metrics() if run else [],
        stopped_early=run.load_early_stop() if run else None,
        model_path=str(arguments.model),
        command=command,
        skip_unreadable=skip,
    )
    sizes = SampleSizes.for_model(classifier, corruptions=arguments.corruptions)
    with progress_bar("writing the report", REPORT_STEPS + arguments.corruptions) as progress:
        write_report(subject, folder, sizes=sizes, on_step=lambda step: progress.advance(note=step))
    return folder / "report.html"
