"""The report of a run, which may take a fraction of the time of training."""

from vitrail.classifier import Classifier
from vitrail.console import log, progress_bar
from vitrail.data.split import Splits
from vitrail.documents import EarlyStop
from vitrail.evaluation.multi_label_evaluation import MultiLabelEvaluation
from vitrail.evaluation.numbers import NumberEvaluation
from vitrail.evaluation.outcomes import AnyEvaluation
from vitrail.report import Subject, report_command, write_report
from vitrail.report.budget import Budget, describe_shortened
from vitrail.report.collect import REPORT_STEPS
from vitrail.report.label_report import STEPS, LabelSubject, write_label_report
from vitrail.report.number_report import STEPS as NUMBER_STEPS
from vitrail.report.number_report import NumberSubject, write_number_report
from vitrail.runs.folder import RunFolder
from vitrail.training.recipe import Recipe

TRAINING_FRACTION = 0.25  # of the time of training, which the report may take


def run_report_command(folder: RunFolder, recipe: Recipe) -> str:
    """Returns the command that writes the whole report of a run."""
    options = ["--skip-unreadable"] if recipe.skip_unreadable else []
    return report_command(folder.path, folder.load_config().data, options)


def write_run_report(
    classifier: Classifier,
    evaluation: AnyEvaluation,
    *,
    folder: RunFolder,
    recipe: Recipe,
    split: str,
    splits: Splits,
    training_s: float,
    stopped_early: EarlyStop | None = None,
) -> None:
    """Writes report.html and report.json into the run folder, and prints what was left out to save time."""
    by_name = splits.as_dict()
    command = run_report_command(folder, recipe)
    if isinstance(evaluation, MultiLabelEvaluation):
        images = evaluation.outcome.readable_images(by_name[split])
        labels = LabelSubject(classifier, images, evaluation, str(folder.path), command)
        with progress_bar("writing the report", STEPS) as progress:
            write_label_report(labels, folder.path, lambda note: progress.advance(note=note))
        return
    if isinstance(evaluation, NumberEvaluation):
        images = evaluation.outcome.readable_images(by_name[split])
        numbers = NumberSubject(classifier, images, evaluation, str(folder.path), command)
        with progress_bar("writing the report", NUMBER_STEPS) as progress:
            write_number_report(numbers, folder.path, lambda note: progress.advance(note=note))
        return
    subject = Subject(
        classifier,
        evaluation.outcome.readable_images(by_name[split]),
        evaluation,
        split=split,
        splits=by_name,
        skip_unreadable=recipe.skip_unreadable,
        training_metrics=folder.load_metrics(),
        stopped_early=stopped_early,
        model_path=str(folder.path),
        command=command,
    )
    budget = Budget(TRAINING_FRACTION * training_s)
    with progress_bar("writing the report", REPORT_STEPS) as progress:
        document = write_report(subject, folder.path, budget=budget, on_step=lambda note: progress.advance(note=note))
    if shortened := document["shortened_parts"]:
        parts = describe_shortened(shortened)
        log(f"to save time, the report uses fewer images for {parts}; the whole report: {command}")
