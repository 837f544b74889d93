"""The end of a run: calibration and scores first, which are saved and announced at once; then pictures and report."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from vitrail.console import log, progress_bar
from vitrail.data.images import Images
from vitrail.data.scoring import OPTIMISTIC_NOTE
from vitrail.data.split import Splits
from vitrail.documents import EarlyStop, RunResult, Scores
from vitrail.errors import VitrailError
from vitrail.evaluation.fitting import calibrate_classifier, calibrated_outcome, with_unlike
from vitrail.evaluation.outcomes import AnyEvaluation, AnyOutcome, compute_any_outcome, evaluate_any, score_any
from vitrail.evaluation.probe import Probe
from vitrail.evaluation.unlike import UnlikeFit
from vitrail.files import read_json_object, write_json
from vitrail.interrupts import Interrupted
from vitrail.loading import load_torch
from vitrail.module_classifier import TorchClassifier
from vitrail.runs.folder import RunFolder
from vitrail.runs.hooks import RunHooks
from vitrail.runs.out_of_fold import OUT_OF_FOLD
from vitrail.runs.pictures import draw_pictures
from vitrail.runs.probes import compare_with_probes
from vitrail.runs.result import ModuleRun, Run, make_run
from vitrail.runs.run_report import run_report_command, write_run_report
from vitrail.runs.start import Start
from vitrail.runs.teaching_table import make_teaching_table
from vitrail.tasks import REGRESSION, has_one_class
from vitrail.training.recipe import Recipe
from vitrail.weights.origin import read_origin

PICTURES = ("confusion", "attention")


class ReportInterrupted(Interrupted):
    """A signal stopped the pictures or the report of a run, whose scores are saved."""

    def __init__(self, run: Run, command: str):
        super().__init__(
            f"stopped before the report was written; the scores are saved in {run.folder}", f"write it with: {command}"
        )
        self.run = run


@dataclass(frozen=True)
class TrainedRun:
    """A run after its last epoch."""

    folder: RunFolder
    splits: Splits
    recipe: Recipe
    device: torch.device
    seconds: float = 0.0  # of training
    probes: Probe | None = None  # of the pretrained weights
    validation_outcome: AnyOutcome | None = None  # of the saved weights, if it is known
    best_epoch: int | None = None  # whose weights are kept, by validation; 0 is the start; None without validation
    stopped_early: EarlyStop | None = None  # epoch, epochs, step, callback and reason
    start: Start | None = None  # of the run, with its teacher

    @property
    def scored_split(self) -> str:
        """The split that the final scores are of: test, else validation."""
        return "test" if self.splits.test is not None else "validation"

    @property
    def scored_images(self) -> Images | None:
        """The images of the scored split; None if no images are held out."""
        return self.splits.as_dict().get(self.scored_split)


def finish_run(trained: TrainedRun, *, report: bool, hooks: RunHooks) -> Run:
    """Calibrates and scores the saved classifier, then draws its pictures and, with `report`, writes its report.

    The callbacks get the scores as soon as they are saved. Raises `ReportInterrupted` for a signal after that.
    """
    run, evaluation = score_run(trained, hooks.find_out_of_fold())
    with keep_run(run, trained):
        run = compare_with_teacher(run, trained)
        hooks.finish_scores(run)
        if evaluation is not None:
            show_run(run, evaluation, trained, report=report)
    return run


def is_finished(trained: TrainedRun) -> bool:
    """Returns whether the run has its classifier, and its scores on the requested split."""
    if not trained.folder.is_finished():
        return False
    return trained.scored_images is None or trained.scored_split in load_result(trained.folder)


def load_result(folder: RunFolder) -> RunResult:
    """Returns the content of result.json; raises `VitrailError` if it is damaged."""
    try:
        return cast(RunResult, read_json_object(folder.result_file))
    except (OSError, ValueError) as error:
        raise VitrailError(f"{folder.result_file} is damaged ({error})", "remove it, then --resume") from None


def reload_run(trained: TrainedRun, *, report: bool, hooks: RunHooks) -> Run:
    """Returns a run that is finished; makes those of its pictures and its report that are missing."""
    folder = trained.folder
    run = make_run(folder.path, load_torch(folder.path, device=trained.device), load_result(folder))
    log(f"{folder.path} is finished")
    report = report and trained.recipe.is_vit and not (folder.path / "report.html").exists()
    with keep_run(run, trained):
        run = compare_with_teacher(run, trained)
        hooks.show_result(run)
        if trained.scored_images is not None and (report or not has_pictures(folder, run)):
            evaluation = evaluate_held_out(run.classifier, trained.scored_images, trained)
            show_run(run, evaluation, trained, report=report)
    return run


def compare_with_teacher(run: Run, trained: TrainedRun) -> Run:
    """Adds the table of teacher and student to the result of a run with a teacher, and saves it."""
    split, images = trained.scored_split, trained.scored_images
    if trained.start is None or trained.start.teacher is None or images is None or "teaching" in run.result:
        return run
    scores = cast(Scores, run.result.get(split))
    rows = make_teaching_table(trained.start, run.classifier, scores, split, images)
    result = cast(RunResult, {**run.result, "teaching": rows})
    write_json(trained.folder.result_file, result)
    return replace(run, result=result)


def has_pictures(folder: RunFolder, run: Run) -> bool:
    """Returns whether the pictures that are drawn after the scores are there; labels have no confusion matrix."""
    if not folder.draws:
        return True
    pictures = PICTURES[:1] if isinstance(run, ModuleRun) else PICTURES
    if not has_one_class(run.classifier.task):
        pictures = ("predictions", "attention") if run.classifier.task == REGRESSION else PICTURES[1:]
    return all(folder.picture(name).exists() for name in pictures)


@contextmanager
def keep_run(run: Run, trained: TrainedRun) -> Iterator[None]:
    """Within the block a stop signal raises `ReportInterrupted`, which has the run."""
    try:
        yield
    except KeyboardInterrupt:
        raise ReportInterrupted(run, run_report_command(trained.folder, trained.recipe)) from None


def score_run(trained: TrainedRun, out_of_fold: AnyOutcome | None = None) -> tuple[Run, AnyEvaluation | None]:
    """Calibrates and scores the saved classifier and saves both; the evaluation is None if no images are held out.

    Without validation images it is calibrated on the outcome `out_of_fold`, if there is one.
    """
    splits, images = trained.splits, trained.scored_images
    classifier = load_torch(trained.folder.path, device=trained.device)
    uncalibrated = None
    if splits.validation is not None:
        uncalibrated = trained.validation_outcome or outcome_on_validation(classifier, splits.validation, trained)
        classifier = calibrate_classifier(classifier, uncalibrated)
        classifier, fitted = fit_unlike(classifier, splits.validation, trained)
        uncalibrated = replace(uncalibrated, distances=fitted.distances)
    elif out_of_fold is not None:
        classifier = calibrate_classifier(classifier, out_of_fold, OUT_OF_FOLD)
    result: RunResult = {"seconds": round(trained.seconds, 3)}
    if trained.best_epoch is not None:
        result["best_epoch"] = trained.best_epoch
    if trained.stopped_early:
        result["stopped_early"] = trained.stopped_early
    if splits.unreadable:
        result["unreadable"] = splits.unreadable
    evaluation = None
    if images is None:
        log("no image was held out, so there is no score and no picture of attention")
    else:
        known = calibrated_outcome(uncalibrated, classifier) if uncalibrated and is_optimistic(trained) else None
        evaluation = evaluate_held_out(classifier, images, trained, known)
        result = cast(RunResult, {**result, **summarize(classifier, evaluation, trained)})
    if images is not None or out_of_fold is not None:
        classifier.save(trained.folder.artifact)
    write_json(trained.folder.result_file, result)
    return make_run(trained.folder.path, classifier, result), evaluation


def show_run(run: Run, evaluation: AnyEvaluation, trained: TrainedRun, *, report: bool) -> None:
    """Draws the pictures of a scored run and writes its report, if requested."""
    images = trained.scored_images
    assert images is not None
    if trained.folder.draws:
        draw_pictures(run.classifier, images, evaluation, trained.folder)
    if report and not isinstance(run, ModuleRun):
        write_run_report(
            run.classifier,
            evaluation,
            folder=trained.folder,
            recipe=trained.recipe,
            split=trained.scored_split,
            splits=trained.splits,
            training_s=run.result["seconds"],
            stopped_early=run.result.get("stopped_early"),
        )


def outcome_on_validation(classifier: TorchClassifier, validation: Images, trained: TrainedRun) -> AnyOutcome:
    """Returns the outcome on validation images of the classifier without a temperature."""
    with progress_bar("fitting the temperature", len(validation)) as progress:
        return compute_any_outcome(
            replace(classifier, temperature=1.0),
            validation,
            batch_size=trained.recipe.evaluation_batch_size(),
            workers=trained.recipe.workers,
            on_batch=progress.advance,
            skip_unreadable=trained.recipe.skip_unreadable,
        )


def fit_unlike(
    classifier: TorchClassifier, validation: Images, trained: TrainedRun
) -> tuple[TorchClassifier, UnlikeFit]:
    """Returns the classifier with `unlike` fitted on the validation images, and the fit, or why there is none."""
    with progress_bar("fitting how unlike an image is", len(validation)) as progress:
        return with_unlike(
            classifier,
            validation,
            batch_size=trained.recipe.evaluation_batch_size(),
            workers=trained.recipe.workers,
            on_batch=progress.advance,
            skip_unreadable=trained.recipe.skip_unreadable,
        )


def is_optimistic(trained: TrainedRun) -> bool:
    """Returns whether the scored images are those by which training selected the weights."""
    return trained.scored_split == "validation"


def evaluate_held_out(
    classifier: TorchClassifier, images: Images, trained: TrainedRun, outcome: AnyOutcome | None = None
) -> AnyEvaluation:
    """Evaluates the classifier on the scored split; `outcome` is its outcome there if it is known already."""
    split = trained.scored_split
    description = f"the {len(images)} {split} images of {trained.splits.name}"
    if is_optimistic(trained):
        description += f", {OPTIMISTIC_NOTE}"
    if outcome is not None:
        return score_any(outcome, classifier, description, is_optimistic(trained))
    with progress_bar(f"evaluating on {split}", len(images)) as progress:
        return evaluate_any(
            classifier,
            images,
            description=description,
            optimistic=is_optimistic(trained),
            batch_size=trained.recipe.evaluation_batch_size(),
            workers=trained.recipe.workers,
            on_batch=progress.advance,
            skip_unreadable=trained.recipe.skip_unreadable,
        )


def summarize(classifier: TorchClassifier, evaluation: AnyEvaluation, trained: TrainedRun) -> dict[str, Any]:
    """Returns the scores for result.json; the artifact's origin gets them too."""
    split = trained.scored_split
    scores = evaluation.summary()
    scores["unreadable"] += trained.splits.unreadable.get(split, 0)
    read_origin(classifier.origin)["metrics"] = {split: scores}
    if trained.probes is None:
        return {split: scores}
    probes = trained.probes.to_json()
    verdict = compare_with_probes(classifier, cast(Scores, scores), probes, trained.best_epoch)
    return {split: scores, "probe": probes, "verdict": verdict}
