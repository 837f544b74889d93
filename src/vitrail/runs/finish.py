"""The end of a run: it is scored, its pictures are drawn, its report is written."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.classifier import Classifier
from vitrail.console import log, progress_bar
from vitrail.data import Images, Splits
from vitrail.data.scoring import OPTIMISTIC_NOTE
from vitrail.evaluation import Evaluation, compute_outcome, evaluate
from vitrail.evaluation.calibration import calibrate
from vitrail.evaluation.figures import draw_confusion_matrix
from vitrail.evaluation.metrics import confusion_matrix
from vitrail.evaluation.probe import Probe
from vitrail.explanation import explain_batch
from vitrail.explanation.figures import save_gallery
from vitrail.files import write_json
from vitrail.loading import load
from vitrail.runs.folder import RunFolder
from vitrail.runs.pretrained import compare_with_probes
from vitrail.training import Recipe


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its classifier and what it scored."""

    folder: Path
    classifier: Classifier
    result: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Folder and figures."""
        return {"run": str(self.folder), **self.result}


@dataclass(frozen=True)
class Ended:
    """A run whose training is over: what its scores, pictures and report are made of."""

    folder: RunFolder
    splits: Splits
    recipe: Recipe
    place: torch.device
    seconds: float  # spent training
    probes: Probe | None

    def load(self) -> Classifier:
        """The kept weights."""
        return load(self.folder.path, device=self.place)


def finish(ended: Ended, data: str | Path, make_report: bool) -> Run:
    """What is done at the end of a run: it is scored, its pictures drawn, its report written."""
    run, evaluation = scored(ended)
    if make_report and evaluation is not None:
        report_on(ended, run, evaluation, data)
    return run


def scored(ended: Ended) -> tuple[Run, Evaluation | None]:
    """The run with its scores and pictures.

    The temperature is fitted on validation, the kept weights are scored, the figures put into the artefact, pictures
    drawn.
    """
    folder, splits, probes = ended.folder, ended.splits, ended.probes
    classifier = ended.load()
    result: dict[str, Any] = {"seconds": round(ended.seconds, 3)}
    skip = ended.recipe.skip_unreadable
    if splits.unreadable:
        result["unreadable"] = splits.unreadable
    if splits.validation is not None:
        classifier = calibrated(classifier, splits.validation, skip, ended.recipe.workers)
    evaluation = None
    name, images = held_out(splits)
    if images is None:
        log("no image was kept back, so there is no score and no picture of attention")
    else:
        optimistic = name == "validation"
        description = f"the {len(images)} {name} images of {splits.name}"
        description += f", {OPTIMISTIC_NOTE}" if optimistic else ""
        with progress_bar(f"evaluating on {name}", len(images)) as progress:
            evaluation = evaluate(
                classifier,
                images,
                description=description,
                optimistic=optimistic,
                workers=ended.recipe.workers,
                on_batch=progress.advance,
                skip_unreadable=skip,
            )
        summary = evaluation.summary()
        summary["unreadable"] += splits.unreadable.get(name, 0)
        result[name] = summary
        classifier.origin["metrics"] = {name: summary}
        if probes:
            result["probe"] = probes.to_json()
            result["verdict"] = compare_with_probes(classifier, result[name], result["probe"])
        classifier.save(folder.artifact)
        draw_pictures(classifier, images, evaluation, folder)
    write_json(folder.path / "result.json", result)
    return Run(folder.path, classifier, result), evaluation


def calibrated(classifier: Classifier, validation: Images, skip_unreadable: bool, workers: int | None) -> Classifier:
    """The classifier with a temperature fitted on validation images; its origin has what they say of its sureness."""
    plain = replace(classifier, temperature=1.0)
    with progress_bar("fitting the temperature", len(validation)) as progress:
        fitted = calibrate(
            compute_outcome(plain, validation, workers=workers, on_batch=progress.advance, skip_unreadable=skip_unreadable)
        )
    origin = {**classifier.origin, "calibration": fitted.to_json()}
    return replace(classifier, temperature=fitted.temperature, origin=origin)


def report_on(ended: Ended, run: Run, evaluation: Evaluation, data: str | Path) -> None:
    """Writes report.html and report.json into the run folder; everything else has been written before."""
    from vitrail.report import Subject, report_command, write_report
    from vitrail.report.collect import REPORT_STEPS

    split, images = held_out(ended.splits)
    assert images is not None
    skip = ended.recipe.skip_unreadable
    subject = Subject(
        run.classifier,
        evaluation.outcome.readable_images(images),
        evaluation,
        split=split,
        splits=ended.splits.as_dict(),
        skip_unreadable=skip,
        training_metrics=RunFolder(run.folder).load_metrics(),
        model_path=str(run.folder),
        command=report_command(run.folder, data, ["--skip-unreadable"] if skip else []),
    )
    with progress_bar("writing the report", REPORT_STEPS) as progress:
        write_report(subject, run.folder, on_step=lambda doing: progress.advance(note=doing))


def held_out(splits: Splits) -> tuple[str, Images | None]:
    """The images that say how good the run is: test, else validation, else none."""
    name = "test" if splits.test is not None else "validation"
    return name, splits.as_dict().get(name)


def draw_pictures(classifier: Classifier, images: Images, evaluation: Evaluation, folder: RunFolder) -> None:
    """What a run shows of its classifier without being asked."""
    draw_confusion_matrix(confusion_matrix(evaluation.outcome), classifier.classes, folder.picture("confusion"))
    draw_attention(classifier, evaluation.outcome.readable_images(images), folder.picture("attention"))


def draw_attention(classifier: Classifier, images: Images, path: Path, most: int = 30) -> None:
    """The maps of some images, about as many of each class, with truth and prediction."""
    rank = np.zeros(len(images), dtype=int)  # the how-manieth of its class an image is
    for number in range(len(images.classes)):
        members = np.flatnonzero(images.labels == number)
        rank[members] = np.arange(len(members))
    chosen = images.subset(sorted(np.lexsort((images.labels, rank))[:most], key=lambda i: int(images.labels[i])))
    pixels = chosen.load_batch(classifier.preprocess, range(len(chosen)))
    truths = [images.classes[number] for number in chosen.labels]
    save_gallery(explain_batch(classifier, pixels, method="attention"), truths, path)
