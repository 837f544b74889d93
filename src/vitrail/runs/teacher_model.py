"""The model that teaches: the arguments of `train` for it, and how it is loaded."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.errors import UsageError, VitrailError
from vitrail.loading import is_program, load_any
from vitrail.module_classifier import ModuleClassifier, module_of
from vitrail.runs.folder import RunFolder
from vitrail.training.recipe import Recipe
from vitrail.weights.artifact import weights_sha256

TeacherModel = str | Path | BaseClassifier | nn.Module
TEACHER_FIELDS = ("distillation", "teacher_weight", "teacher_temperature", "teacher_sees")


@dataclass(frozen=True)
class TeacherRequest:
    """The arguments of `train` for a teacher: the model, a folder of unlabeled images, and a run to compare with."""

    model: TeacherModel | None = None
    unlabeled: str | Path | None = None
    baseline: str | Path | None = None


@dataclass(frozen=True)
class LoadedTeacher:
    """The model that teaches, and what belongs to it."""

    classifier: BaseClassifier
    source: str | None  # what `load_any` was called with; None for an object of Python
    sha256: str  # of its weights, or of its exported file, which has the checksum of its weights
    unlabeled: str | None = None  # the folder of images without labels
    baseline: str | None = None  # a run without a teacher, for the table at the end

    @property
    def name(self) -> str:
        """The teacher for a sentence."""
        return self.source or "the teacher"

    def to_json(self, digest: str | None) -> dict[str, Any]:
        """Returns what recipe.json keeps of it; `digest` is of the unlabeled images."""
        return {
            "model": self.source,
            "sha256": self.sha256,
            "unlabeled": self.unlabeled,
            "unlabeled_sha256": digest,
            "baseline": self.baseline,
        }

    def origin(self, recipe: Recipe, unlabeled: int) -> dict[str, Any]:
        """Returns what the student's artifact keeps of it, without its path."""
        name = self.source and (Path(self.source).name if Path(self.source).exists() else self.source)
        kind = choose_distillation(self, recipe)
        return {"model": name, "sha256": self.sha256, "distillation": kind, "unlabeled_images": unlabeled}


def load_teacher(
    request: TeacherRequest, recipe: Recipe, resumed: RunFolder | None, device: torch.device, torch_files: bool
) -> LoadedTeacher | None:
    """Returns the teacher of a run, for a resumed run that it was started with; None for a run without one.

    Raises `VitrailError` if a resumed run had another teacher, `UsageError` for settings that need a teacher.
    """
    before = resumed.load_config().teacher if resumed else None
    if resumed and before is None and request.model is not None:
        raise UsageError(f"{resumed.path} was started without a teacher", "resume it without --teacher")
    if resumed and before and request.model is None and before["model"] is None:
        raise UsageError(f"{resumed.path} was started with a teacher in Python", "pass it again as teacher=")
    before = before or {}
    model = request.model if request.model is not None else before.get("model")
    if model is None:
        refuse_settings(request, recipe)
        return None
    classifier = model if isinstance(model, BaseClassifier) else load_any(model, device, torch_files=torch_files)
    source = str(model) if isinstance(model, str | Path) else None
    unlabeled, baseline = (
        str(value) if value is not None else before.get(key)
        for key, value in (("unlabeled", request.unlabeled), ("baseline", request.baseline))
    )
    teacher = LoadedTeacher(classifier, source, hash_teacher(classifier, source), unlabeled, baseline)
    if before and before["sha256"] != teacher.sha256:
        assert resumed
        raise VitrailError(
            f"{teacher.name} does not hold the weights of the teacher of {resumed.path}",
            "restore them, or start a new run",
        )
    return teacher


def refuse_settings(request: TeacherRequest, recipe: Recipe) -> None:
    """Raises `UsageError` if something is set that only a teacher gives an effect."""
    defaults = Recipe()
    unused = [name for name in TEACHER_FIELDS if getattr(recipe, name) != getattr(defaults, name)]
    unused += [name for name in ("unlabeled", "baseline") if getattr(request, name) is not None]
    if unused:
        raise UsageError(f"there is no teacher, so {', '.join(unused)} has no effect", "add --teacher MODEL")


def hash_teacher(classifier: BaseClassifier, source: str | None) -> str:
    """Returns the SHA-256 of a teacher's weights, or of its exported file, which has the checksum of its weights."""
    if isinstance(classifier, Classifier | ModuleClassifier):
        return weights_sha256({name: each.cpu() for name, each in module_of(classifier).state_dict().items()})
    if source is None or not is_program(source):
        raise UsageError(f"a {type(classifier).__name__} cannot be a teacher", "name its file")
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()


def choose_distillation(teacher: LoadedTeacher, recipe: Recipe) -> str:
    """Returns what the student learns: the recipe's distillation, else what the teacher has."""
    return recipe.distillation or ("soft" if teacher.classifier.classes else "features")


def answers_batches(recipe: Recipe) -> bool:
    """Returns whether the teacher answers in each step, for augmented images; else once for each image."""
    return (recipe.teacher_sees or ("batch" if recipe.augment.is_mixing else "image")) == "batch"
