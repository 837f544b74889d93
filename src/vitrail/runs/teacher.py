"""The teacher of a run: checked against the data, and asked for its answers.

A teacher that answers once for each image writes its answers into the run folder (teacher.safetensors), so that a
resumed run learns from the same bits.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from vitrail.classifier import BaseClassifier, Classifier, eval_mode
from vitrail.console import log, progress_bar
from vitrail.data.images import Images
from vitrail.data.loader import EvaluationLoader
from vitrail.data.preprocess import Preprocess
from vitrail.data.unlabeled import read_unlabeled
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluation.features import extract_features, read_cached
from vitrail.files import write_atomically
from vitrail.machine import GIB
from vitrail.module_classifier import ModuleClassifier, TorchClassifier, module_of
from vitrail.runs.folder import RunFolder
from vitrail.runs.start import Start
from vitrail.runs.teacher_model import LoadedTeacher, answers_batches, choose_distillation
from vitrail.tasks import TASKS
from vitrail.training.distributed import World
from vitrail.training.losses import StepBatch
from vitrail.training.recipe import Recipe
from vitrail.training.teacher import Teacher, look_up, prepare_labels
from vitrail.weights.artifact import weights_sha256
from vitrail.weights.origin import read_origin

HEAD_ROWS = 4096  # features that the teacher's head computes at once


class UnlabeledData(TypedDict):
    """The fields of `RunData` on training images without labels."""

    unlabeled: Images | None
    unlabeled_digest: str | None


def add_teacher(start: Start, teacher: LoadedTeacher | None, world: World) -> Start:
    """Returns the start with its teacher, which the student's origin names; raises as `check_teacher` does."""
    if teacher is None:
        return start
    origin = read_origin(start.classifier.origin)
    origin["teacher"] = teacher.origin(start.recipe, len(start.data.unlabeled or ()))
    start = replace(start, teacher=teacher)
    check_teacher(start, world)
    return start


def check_teacher(start: Start, world: World) -> None:
    """Raises `UsageError` if the teacher cannot teach this student on these data."""
    assert start.teacher is not None
    teacher = start.teacher
    recipe, classifier, splits = start.recipe, teacher.classifier, start.splits
    name, kind = teacher.name, choose_distillation(teacher, recipe)
    if kind != "features":
        check_answers(name, classifier, splits.train.task, recipe)
    if teacher.baseline:
        check_baseline(teacher.baseline, splits.fingerprint)
    if recipe.train_on == "features":
        raise UsageError("a head on features is fitted, so no teacher can teach it", "use another --recipe")
    if world.is_sharded:
        raise UsageError("--fsdp shards the student, and a teacher reads its features", "leave out --fsdp")
    if classifier.preprocess.source_channels != splits.channels:
        channels = (classifier.preprocess.source_channels, splits.channels)
        theirs, ours = ("gray" if each == 1 else "color" if each == 3 else str(each) for each in channels)
        raise UsageError(f"{name} sees {theirs} images, and the student {ours} ones", "take another teacher")
    if kind == "features" and not (isinstance(classifier, Classifier) and isinstance(start.classifier, Classifier)):
        raise UsageError("only a ViT learns features, and only of a ViT", "use distillation soft or hard")
    missing = [each for each in splits.classes if each not in classifier.classes]
    if kind != "features" and missing:
        has = f"lacks the classes {', '.join(missing[:3])}" if classifier.classes else "has no classes"
        raise UsageError(f"{name} {has}{' ...' if len(missing) > 3 else ''}", "use distillation features")
    if answers_batches(recipe) and not isinstance(classifier, Classifier | ModuleClassifier):
        raise UsageError(f"{name} is not a torch model, so it cannot answer in each step", "use teacher_sees image")
    if recipe.augment.is_mixing and not answers_batches(recipe):
        raise UsageError("MixUp and CutMix make images that the teacher has not seen", "use teacher_sees batch")
    if start.data.unlabeled:
        if recipe.augment.is_mixing:
            raise UsageError("unlabeled images cannot be mixed with labeled ones", "turn off mixup and cutmix")
        if recipe.balance == "sampler":
            raise UsageError("unlabeled images have no class to balance", "use balance weights or logits")


def check_answers(name: str, classifier: BaseClassifier, task: str, recipe: Recipe) -> None:
    """Raises `UsageError` if a teacher does not give what the images of a task have."""
    theirs, ours = TASKS[classifier.task], TASKS[task]
    if classifier.classes and theirs.answer != ours.answer:
        raise UsageError(
            f"{name} gives each image {theirs.description}, and each of these images has {ours.description}",
            "use distillation features",
        )
    if ours.answer == "numbers":
        if recipe.distillation == "hard":
            raise UsageError("numbers have no most probable class, so they cannot be hard", "use distillation soft")
        if recipe.teacher_temperature != Recipe().teacher_temperature:
            raise UsageError("a temperature changes probabilities, and numbers have none", "leave it out")


def check_baseline(baseline: str | Path, fingerprint: str) -> None:
    """Raises `UsageError` if a run is not finished, has a teacher, or was trained on other data."""
    folder = RunFolder(Path(baseline))
    config = folder.load_config()
    if config.teacher:
        raise UsageError(f"{baseline} has a teacher, so it is no baseline", "name a run without a teacher")
    if config.fingerprint != fingerprint:
        raise UsageError(f"{baseline} was trained on other data", "name a run on the same data")
    if not folder.is_finished():
        raise UsageError(f"{baseline} is not finished", "finish it first, with --resume")


def prepare_teacher(start: Start, images: Images, folder: RunFolder, world: World) -> Teacher | None:
    """Returns the teacher as the loss asks it, None for a run without one; `images` are all training images.

    The first process of a run asks it for its answers, which may take minutes.
    """
    if start.teacher is None:
        return None
    teacher = start.teacher
    kind = choose_distillation(teacher, start.recipe)
    width = len(start.splits.classes)
    if kind == "features":
        assert isinstance(teacher.classifier, Classifier)
        width = teacher.classifier.vit.config.pooled_width
    student = start.classifier
    scale = student.target_scale if isinstance(student, Classifier) else None
    labels_N, answer_kind = prepare_labels(images.labels, scale), start.task.answer
    if answers_batches(start.recipe):
        answer = answer_batches(teacher, start, kind)
        return Teacher(answer, labels_N, kind, width, answer_kind)
    path = folder.path / "teacher.safetensors"
    world.on_main(lambda: write_answers(path, teacher, start, kind, len(images)))
    answers_NA = read_cached(path, len(images))
    if answers_NA is None:
        raise VitrailError(f"{path} cannot be read", "the run folder must be on a disk that all processes share")
    return Teacher(look_up(answers_NA), labels_N, kind, width, answer_kind)


def write_answers(path: Path, teacher: LoadedTeacher, start: Start, kind: str, n: int) -> None:
    """Writes the teacher's answers for all `n` training images, unless an earlier process of the run has."""
    if read_cached(path, n) is not None:
        return
    parts = [start.splits.train, *([start.data.unlabeled] if start.data.unlabeled else [])]
    log(f"the teacher answers for {n:,} training images, once for each")
    answers = torch.cat([ask_teacher(teacher, part, start, kind) for part in parts])
    answers = translate_answers(answers, teacher.classifier, start, kind)
    tensors = {"features": answers.contiguous()}  # the format of the feature cache
    metadata = {"vitrail": json.dumps({"sha256": weights_sha256(tensors)})}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def ask_teacher(teacher: LoadedTeacher, images: Images, start: Start, kind: str) -> Tensor:
    """Returns the teacher's features of these images, or its logits or numbers in the order of the student's, (n, A).

    The features of a ViT are cached, so that a stopped run continues where it was.
    """
    classifier, workers = teacher.classifier, start.recipe.workers
    with progress_bar("asking the teacher", len(images)) as progress:
        if isinstance(classifier, Classifier):
            features = extract_features(classifier, images, workers=workers, on_batch=progress.advance)
            if kind == "features":
                return torch.from_numpy(features)
            logits = apply_head(classifier, torch.from_numpy(features))
        else:
            loader = EvaluationLoader(images, classifier.preprocess, batch_size=64, workers=workers)
            parts = []
            for pixels, _ in loader:
                parts.append(classifier.logits(pixels).cpu())
                progress.advance(len(pixels))
            logits = torch.cat(parts)
    return logits[:, class_columns(classifier, start.splits.classes)]


@torch.inference_mode()
def apply_head(classifier: Classifier, features_ND: Tensor) -> Tensor:
    """Returns the logits of features, or the numbers."""
    parts = [classifier.vit.head(part.to(classifier.device)).cpu() for part in torch.split(features_ND, HEAD_ROWS)]
    return finish_outputs(torch.cat(parts), classifier)


def finish_outputs(outputs_BY: Tensor, classifier: TorchClassifier) -> Tensor:
    """Returns the logits of a classifier for the outputs of its model, or its numbers in their units."""
    if isinstance(classifier, Classifier) and classifier.target_scale:
        return classifier.target_scale.restore(outputs_BY)
    return outputs_BY / classifier.temperature


def translate_answers(answers_NA: Tensor, classifier: BaseClassifier, start: Start, kind: str) -> Tensor:
    """Returns a teacher's answers as the loss compares them.

    Numbers are standardized as the student's. If several labels are hard, those that the teacher predicts are positive.
    """
    student = start.classifier
    if kind == "soft" and isinstance(student, Classifier) and student.target_scale:
        return student.target_scale.standardize(answers_NA.cpu()).to(answers_NA.device)
    if kind == "hard" and start.task.answer == "labels" and classifier.thresholds:
        thresholds = np.array(classifier.thresholds)[class_columns(classifier, start.splits.classes)]
        return answers_NA - torch.tensor(np.log(thresholds) - np.log1p(-thresholds)).to(answers_NA)
    return answers_NA


def class_columns(classifier: BaseClassifier, classes: Sequence[str]) -> list[int]:
    """Returns the index of each of these classes among the teacher's."""
    return [classifier.classes.index(name) for name in classes]


def answer_batches(teacher: LoadedTeacher, start: Start, kind: str) -> Callable[[StepBatch], Tensor]:
    """Returns a function that computes the teacher's answers for the images that the student sees."""
    classifier, student = teacher.classifier, start.classifier.preprocess
    assert isinstance(classifier, Classifier | ModuleClassifier)
    module = module_of(classifier)
    columns = class_columns(classifier, start.splits.classes) if kind != "features" else []

    @torch.no_grad()
    def answer(batch: StepBatch) -> Tensor:
        images_BCHW = translate_images(batch.images_BCHW, student, classifier)
        with eval_mode(module):
            if kind == "features":
                assert isinstance(classifier, Classifier)
                return classifier.vit.features(images_BCHW)
            answers_BY = finish_outputs(module(images_BCHW), classifier)[:, columns]
            return translate_answers(answers_BY, classifier, start, kind)

    return answer


def translate_images(images_BCHW: Tensor, student: Preprocess, classifier: TorchClassifier) -> Tensor:
    """Returns the student's input as the teacher's: at its size, with its mean and standard deviation."""
    device, theirs = images_BCHW.device, classifier.preprocess

    def per_channel(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=device).view(1, -1, 1, 1)

    values_BCHW = images_BCHW * per_channel(student.std) + per_channel(student.mean)  # from 0 to 1
    if values_BCHW.shape[-2:] != theirs.image_size:
        values_BCHW = F.interpolate(values_BCHW, theirs.image_size, mode="bicubic", antialias=True)
        if student.values == "uint8":
            values_BCHW = values_BCHW.clamp(0, 1)
    return (values_BCHW - per_channel(theirs.mean)) / per_channel(theirs.std)


def load_unlabeled(
    teacher: LoadedTeacher | None, recipe: Recipe, resumed: RunFolder | None, world: World
) -> UnlabeledData:
    """Returns the unlabeled images of a teacher and their digest, if there are any.

    They are read in the teacher's channels, which are also the student's (`check_teacher`). Raises `VitrailError` if a
    resumed run had other images.
    """
    if teacher is None or teacher.unlabeled is None:
        return {"unlabeled": None, "unlabeled_digest": None}
    with world.raise_on_all():
        images, digest = read_unlabeled(
            teacher.unlabeled,
            teacher.classifier.preprocess.source_channels,
            skip_unreadable=recipe.skip_unreadable,
            max_bytes=int(recipe.image_cache_gib * GIB) // world.local_size,
        )
        before = resumed.load_config().teacher if resumed else None
        if resumed and before and before["unlabeled_sha256"] != digest:
            raise VitrailError(
                f"the images in {teacher.unlabeled} are not those that {resumed.path} was started on",
                "resume on the same files, or start a new run on these",
            )
    if len(set(world.all_gather(digest))) > 1:
        raise VitrailError("the processes have different unlabeled images", "give all of them the same files")
    return {"unlabeled": images, "unlabeled_digest": digest}
