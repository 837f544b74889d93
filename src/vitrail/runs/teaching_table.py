"""What a teacher was good for: the scores, speed and size of teacher, student, and what they are compared with."""

import time
from pathlib import Path
from statistics import median
from typing import cast

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.console import log
from vitrail.data.images import Images
from vitrail.documents import Scores, TeachingRow
from vitrail.evaluation.outcomes import AnyEvaluation
from vitrail.evaluation.probe import make_evaluation, probe
from vitrail.evaluation.probe_scores import pick_scores
from vitrail.files import read_json_object
from vitrail.loading import load_torch
from vitrail.module_classifier import ModuleClassifier, TorchClassifier, module_of
from vitrail.runs.folder import RunFolder
from vitrail.runs.start import Start
from vitrail.runs.teacher import ask_teacher, class_columns
from vitrail.runs.teacher_model import LoadedTeacher
from vitrail.tasks import TASKS

TIMED_IMAGES = 32  # per batch
TIMED_BATCHES = 3


def make_teaching_table(
    start: Start, student: TorchClassifier, scores: Scores, split: str, images: Images
) -> list[TeachingRow]:
    """Returns the rows of teacher, student, baseline and the linear probe of the teacher's features.

    `scores` are the student's on the `images` of a split. A row has no scores if it has none there.
    """
    teacher = start.teacher
    assert teacher is not None
    log("scoring the teacher")
    rows = [make_row("teacher", teacher.classifier, evaluate_teacher(teacher, images, start))]
    rows.append(make_row("student", student, scores))
    if teacher.baseline is not None:
        folder = RunFolder(Path(teacher.baseline))
        result = read_json_object(folder.result_file)
        rows.append(make_row("student without a teacher", load_torch(folder.path), result.get(split)))
    if isinstance(teacher.classifier, Classifier) and split == "test":
        probes = probe(teacher.classifier, start.splits, workers=start.recipe.workers)
        rows.append(make_row("linear probe of the teacher", teacher.classifier, probes.linear))
    return rows


def evaluate_teacher(teacher: LoadedTeacher, images: Images, start: Start) -> AnyEvaluation | None:
    """Returns the scores of a teacher that has the classes of the data, and gives the answers of their task."""
    is_of_task = TASKS[teacher.classifier.task].answer == start.task.answer
    if not is_of_task or not set(start.splits.classes) <= set(teacher.classifier.classes):
        return None
    logits = ask_teacher(teacher, images, start, "soft").numpy()
    thresholds = teacher.classifier.thresholds
    if thresholds:
        thresholds = tuple(thresholds[i] for i in class_columns(teacher.classifier, start.splits.classes))
    return make_evaluation(images, logits, start.splits.classes, (), thresholds)


def make_row(name: str, classifier: BaseClassifier, scores: AnyEvaluation | Scores | None) -> TeachingRow:
    """Returns the row of a model, with its speed on this machine."""
    summary = scores.summary() if isinstance(scores, AnyEvaluation) else scores
    row: TeachingRow = {"model": name, "images_per_second": measure_speed(classifier)}
    if summary:
        row = cast(TeachingRow, {**row, **pick_scores({**summary})})
    if isinstance(classifier, Classifier | ModuleClassifier):
        row["parameters"] = sum(each.numel() for each in module_of(classifier).parameters())
    return row


def measure_speed(classifier: BaseClassifier) -> float:
    """Returns the images per second of the model alone: the median of some batches, after one that is not timed."""
    pixels = classifier.preprocess.blank(TIMED_IMAGES)
    seconds = []
    for _ in range(TIMED_BATCHES + 1):
        started = time.perf_counter()
        classifier.logits(pixels).cpu()
        seconds.append(time.perf_counter() - started)
    return round(TIMED_IMAGES / median(seconds[1:]), 1)
