"""The end of a run: calibration, scores, pictures, report."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.classifier import Classifier
from vitrail.console import log, progress_bar
from vitrail.data.images import Images
from vitrail.data.scoring import OPTIMISTIC_NOTE
from vitrail.data.split import Splits
from vitrail.evaluation import Evaluation, compute_outcome, evaluate
from vitrail.evaluation.calibration import calibrate
from vitrail.evaluation.figures import draw_confusion_matrix
from vitrail.evaluation.metrics import confusion_matrix
from vitrail.evaluation.probe import Probe
from vitrail.explanation.api import explain_batch
from vitrail.explanation.figures import save_gallery
from vitrail.files import write_json
from vitrail.loading import load
from vitrail.runs.folder import RunFolder
from vitrail.runs.probes import compare_with_probes
from vitrail.training.recipe import Recipe

GALLERY_IMAGES = 30  # in attention.png


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its classifier and its scores."""

    folder: Path
    classifier: Classifier
    result: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Returns the folder and the scores."""
        return {"run": str(self.folder), **self.result}


@dataclass(frozen=True)
class TrainedRun:
    """A run after its last epoch."""

    folder: RunFolder
    splits: Splits
    recipe: Recipe
    device: torch.device
    seconds: float  # of training
    probes: Probe | None = None  # of the pretrained weights

    @property
    def scored_split(self) -> str:
        """The split that the final scores are of: test, else validation."""
        return "test" if self.splits.test is not None else "validation"


def finish_run(trained: TrainedRun, *, report: bool) -> Run:
    """Calibrates and scores the saved classifier, writes its scores, pictures and, with `report`, its report."""
    splits, images = trained.splits, trained.splits.as_dict().get(trained.scored_split)
    classifier = load(trained.folder.path, device=trained.device)
    if splits.validation is not None:
        classifier = fit_temperature(classifier, splits.validation, trained.recipe)
    result: dict[str, Any] = {"seconds": round(trained.seconds, 3)}
    if splits.unreadable:
        result["unreadable"] = splits.unreadable
    evaluation = None
    if images is None:
        log("no image was held out, so there is no score and no picture of attention")
    else:
        evaluation = evaluate_held_out(classifier, images, trained)
        result |= summarize(classifier, evaluation, trained)
        classifier.save(trained.folder.artifact)
        draw_pictures(classifier, images, evaluation, trained.folder)
    write_json(trained.folder.result_file, result)
    if report and images is not None and evaluation is not None:
        write_run_report(classifier, images, evaluation, trained)
    return Run(trained.folder.path, classifier, result)


def fit_temperature(classifier: Classifier, validation: Images, recipe: Recipe) -> Classifier:
    """Returns the classifier with a temperature fitted on validation images, and the fit in its origin."""
    uncalibrated = replace(classifier, temperature=1.0)
    with progress_bar("fitting the temperature", len(validation)) as progress:
        outcome = compute_outcome(
            uncalibrated,
            validation,
            workers=recipe.workers,
            on_batch=progress.advance,
            skip_unreadable=recipe.skip_unreadable,
        )
        calibration = calibrate(outcome)
    origin = {**classifier.origin, "calibration": calibration.to_json()}
    return replace(classifier, temperature=calibration.temperature, origin=origin)


def evaluate_held_out(classifier: Classifier, images: Images, trained: TrainedRun) -> Evaluation:
    """Evaluates the classifier on the scored split."""
    split = trained.scored_split
    description = f"the {len(images)} {split} images of {trained.splits.name}"
    is_optimistic = split == "validation"
    if is_optimistic:
        description += f", {OPTIMISTIC_NOTE}"
    with progress_bar(f"evaluating on {split}", len(images)) as progress:
        return evaluate(
            classifier,
            images,
            description=description,
            optimistic=is_optimistic,
            workers=trained.recipe.workers,
            on_batch=progress.advance,
            skip_unreadable=trained.recipe.skip_unreadable,
        )


def summarize(classifier: Classifier, evaluation: Evaluation, trained: TrainedRun) -> dict[str, Any]:
    """Returns the scores for result.json; the artifact's origin gets them too."""
    split = trained.scored_split
    scores = evaluation.summary()
    scores["unreadable"] += trained.splits.unreadable.get(split, 0)
    classifier.origin["metrics"] = {split: scores}
    if trained.probes is None:
        return {split: scores}
    probes = trained.probes.to_json()
    return {split: scores, "probe": probes, "verdict": compare_with_probes(classifier, scores, probes)}


def draw_pictures(classifier: Classifier, images: Images, evaluation: Evaluation, folder: RunFolder) -> None:
    """Draws the confusion matrix and the attention gallery."""
    draw_confusion_matrix(confusion_matrix(evaluation.outcome), classifier.classes, folder.picture("confusion"))
    draw_attention(classifier, evaluation.outcome.readable_images(images), folder.picture("attention"))


def draw_attention(classifier: Classifier, images: Images, path: Path, max_images: int = GALLERY_IMAGES) -> None:
    """Draws the attention maps of some images, about equally many per class, with true and predicted class."""
    rank_in_class = np.zeros(len(images), dtype=int)  # index of an image among those of its class
    for label in range(len(images.classes)):
        members = np.flatnonzero(images.labels == label)
        rank_in_class[members] = np.arange(len(members))
    first = np.lexsort((images.labels, rank_in_class))[:max_images]
    shown = images.subset(sorted(first, key=lambda i: int(images.labels[i])))
    pixels = shown.load_batch(classifier.preprocess, range(len(shown)))
    true_classes = [images.classes[label] for label in shown.labels]
    save_gallery(explain_batch(classifier, pixels, method="attention"), true_classes, path)


def write_run_report(classifier: Classifier, images: Images, evaluation: Evaluation, trained: TrainedRun) -> None:
    """Writes report.html and report.json into the run folder."""
    from vitrail.report import Subject, report_command, write_report
    from vitrail.report.collect import REPORT_STEPS

    folder, skip_unreadable = trained.folder, trained.recipe.skip_unreadable
    options = ["--skip-unreadable"] if skip_unreadable else []
    subject = Subject(
        classifier,
        evaluation.outcome.readable_images(images),
        evaluation,
        split=trained.scored_split,
        splits=trained.splits.as_dict(),
        skip_unreadable=skip_unreadable,
        training_metrics=folder.load_metrics(),
        model_path=str(folder.path),
        command=report_command(folder.path, folder.load_config().data, options),
    )
    with progress_bar("writing the report", REPORT_STEPS) as progress:
        write_report(subject, folder.path, on_step=lambda note: progress.advance(note=note))
