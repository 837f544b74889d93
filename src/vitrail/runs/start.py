"""The classifier before the first step: its recipe in full, its weights, its origin."""

import platform
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitrail.classifier import Classifier
from vitrail.console import log
from vitrail.data.bands import count_of
from vitrail.data.images import count_labels
from vitrail.data.split import Splits
from vitrail.machine import has_native_bf16
from vitrail.model.config import ViTConfig
from vitrail.model.init import initialize
from vitrail.model.vit import ViT
from vitrail.module_classifier import ModuleClassifier, TorchClassifier, module_of
from vitrail.runs.data import RunData
from vitrail.runs.module_start import GivenModule, describe_missing, start_module
from vitrail.runs.pretrained import Pretrained
from vitrail.runs.resolve import RESULT_NEUTRAL_FIELDS
from vitrail.runs.teacher_model import LoadedTeacher
from vitrail.target_scale import TargetScale
from vitrail.tasks import GRADES, REGRESSION, TASKS, Task
from vitrail.training.data_defaults import complete_recipe, resolve_model, resolve_module
from vitrail.training.distributed import World
from vitrail.training.freezing import match_parameters
from vitrail.training.losses import LossContext
from vitrail.training.recipe import Recipe
from vitrail.training.train_state import autocast_dtype
from vitrail.training.transfer import (
    HeadTransfer,
    describe_channels_of_weights,
    describe_head,
    resolve_transfer,
    transfer_weights,
)
from vitrail.version import __version__
from vitrail.weights.builders import ModuleConfig
from vitrail.weights.origin import read_origin


@dataclass(frozen=True)
class Start:
    """A run before its first step."""

    classifier: TorchClassifier
    recipe: Recipe  # with sizes, epochs and batch size
    data: RunData
    has_new_head: bool = True  # else the head is that of the pretrained weights
    teacher: LoadedTeacher | None = None

    @property
    def splits(self) -> Splits:
        return self.data.splits

    @property
    def task(self) -> Task:
        return TASKS[self.splits.train.task]

    def loss_context(self) -> LossContext:
        """Returns what the loss of the run may depend on."""
        classes, train = self.splits.classes, self.splits.train
        return LossContext(self.recipe, classes, count_labels(train.labels, len(classes)), train.task, len(train))


def build_classifier(
    recipe: Recipe, data: RunData, pretrained: Pretrained | GivenModule | None, device: torch.device
) -> Start:
    """Completes the recipe from the data and builds the classifier, with random or pretrained weights."""
    splits, task = data.splits, data.splits.train.task
    data_origin = describe_data(splits, recipe)
    scale = choose_scale(splits, pretrained)
    origin: dict[str, Any] = {}
    model: nn.Module
    config: ViTConfig | ModuleConfig
    head: HeadTransfer = "new"
    if isinstance(pretrained, Pretrained):
        theirs = pretrained.classifier
        warn_if_trained_on_held_out_images(theirs, data_origin)
        channels = count_of(splits.channels)
        config, preprocess = resolve_transfer(
            recipe, len(splits.classes), theirs.vit.config, theirs.preprocess, channels
        )
        if channels != theirs.vit.config.channels:
            log(describe_channels_of_weights(theirs.vit.config.channels, channels))
        torch.manual_seed(recipe.seed)
        theirs_classes = theirs.classes if theirs.task == task else ()  # a head of another task is no use
        model, head = transfer_weights(theirs.vit, theirs_classes, config, splits.classes)
        if theirs.task == task:
            log(describe_head(head, theirs.classes, splits.classes) + refit_note(recipe, head))
        else:
            log(f"a new head {describe_labels(splits)} replaces the head for {TASKS[theirs.task].description}")
        origin["from"] = pretrained.origin(head)
    else:
        config, preprocess = resolve_model(recipe, splits) if recipe.is_vit else resolve_module(recipe, splits)
        model = (
            random_vit(config, recipe) if isinstance(config, ViTConfig) else start_module(config, recipe, pretrained)
        )
        if pretrained is not None:
            origin["from"] = pretrained.to_json()
    is_transfer = isinstance(pretrained, Pretrained)
    unlabeled = len(data.unlabeled or ())
    recipe, preprocess = complete_recipe(recipe, config, preprocess, splits, transfers=is_transfer, unlabeled=unlabeled)
    match_parameters((name for name, _ in model.named_parameters()), recipe.frozen_patterns)
    origin |= describe_training(recipe) | {"data": data_origin}
    model = model.to(device)
    if isinstance(model, ViT):
        classifier: TorchClassifier = Classifier(
            model,
            splits.classes,
            preprocess,
            origin=origin,
            task=task,
            target_scale=scale,
        )
    else:
        log(describe_missing(recipe.architecture))
        classifier = ModuleClassifier(
            model, splits.classes, preprocess, origin=origin, architecture=recipe.architecture
        )
    return Start(classifier, recipe, data, has_new_head=head == "new")


def choose_scale(splits: Splits, pretrained: Pretrained | GivenModule | None) -> TargetScale | None:
    """Returns the scale of numbers, None for other tasks: that of a model of the same numbers, whose head is kept.

    Else it is that of the training images; raises `VitrailError` for a number that never changes.
    """
    if splits.train.task != REGRESSION:
        return None
    theirs = pretrained.classifier if isinstance(pretrained, Pretrained) else None
    if theirs and theirs.target_scale and set(theirs.classes) == set(splits.classes):
        return theirs.target_scale.take([theirs.classes.index(name) for name in splits.classes])
    return TargetScale.of(splits.train.labels, splits.classes)


def random_vit(config: ViTConfig, recipe: Recipe) -> ViT:
    """Returns a ViT with random weights, drawn with the recipe's seed."""
    torch.manual_seed(recipe.seed)
    vit = ViT(config)
    initialize(vit, patch_init_std=recipe.patch_init_std, zero_init_residual=recipe.zero_init_residual)
    return vit


def refit_note(recipe: Recipe, head: str) -> str:
    """Says that a recipe on features replaces a head that the weights bring."""
    return "; it is fitted anew" if recipe.train_on == "features" and head != "new" else ""


def warn_if_trained_on_held_out_images(theirs: Classifier, data_origin: dict[str, Any]) -> None:
    """Warns if pretrained weights were trained on the same data with another split."""
    data, split = read_origin(theirs.origin).get("data", {}), data_origin["split"]
    if data.get("fingerprint") == data_origin["fingerprint"] and data.get("split", split) != split:
        log(
            "warning: the weights were trained on these data with another split: images held out now may have been "
            "trained on then, and scores will be too high"
        )


def describe_data(splits: Splits, recipe: Recipe) -> dict[str, Any]:
    """Returns the data of a run, for the origin in its artifact."""
    return {
        "name": splits.name,
        "fingerprint": splits.fingerprint,
        "images": {name: len(images) for name, images in splits.as_dict().items()},
        "unreadable": splits.unreadable,
        "split": {
            "test": recipe.test_fraction,
            "validation": recipe.validation_fraction,
            "seed": recipe.split_seed,
            **({} if recipe.group_pattern is None else {"group_pattern": recipe.group_pattern}),
        },
    }


def describe_training(recipe: Recipe) -> dict[str, Any]:
    """Recipe, its parts of plugins, and versions of a run, for the origin in its artifact.

    Fields of the recipe that do not change the result are left out.
    """
    parts = recipe.parts()
    return {
        **({"parts": parts} if parts else {}),
        "recipe": {name: value for name, value in recipe.to_json().items() if name not in RESULT_NEUTRAL_FIELDS},
        "seed": recipe.seed,
        "versions": {"vitrail": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def explain_precision(recipe: Recipe, device: torch.device) -> str | None:
    """Returns a line on the number format if a GPU only emulates bf16, which is slower than float32; else None."""
    if device.type != "cuda" or has_native_bf16(device) or recipe.precision == "fp32":
        return None
    if recipe.precision == "auto":
        return "this GPU has no bf16 units: training runs in float32"
    return "warning: this GPU has no bf16 units and emulates bf16 slowly; --precision fp32 is faster"


def describe_plan(start: Start, world: World) -> str:
    """Returns a line on what is trained, on what data and how."""
    recipe, classifier = start.recipe, start.classifier
    dtype = str(autocast_dtype(recipe.precision, world.device)).removeprefix("torch.")
    schedule = f"{recipe.epochs} epoch{'s' * (recipe.epochs != 1)}, batch size {recipe.batch_size}"
    if recipe.train_on == "features":
        dtype, schedule = "float32", "a linear head on frozen features"
    processes = f"{world.size} processes{', sharded' if world.is_sharded else ''}; " if world.size > 1 else ""
    unlabeled = f" and {len(start.data.unlabeled)} without labels" if start.data.unlabeled else ""
    return (
        f"{len(start.splits.train)} training images{unlabeled} {describe_labels(start.splits)}, "
        f"{describe_classifier(classifier)}, "
        f"{sum(parameter.numel() for parameter in module_of(classifier).parameters()):,} parameters; "
        f"recipe {recipe.name}, {schedule}; {processes}{world.device.type} in {dtype}"
    )


def describe_labels(splits: Splits) -> str:
    """Returns how many classes, labels or grades there are, or the names of the numbers, as text."""
    if splits.train.task == REGRESSION:
        return f"with the number{'s' * (len(splits.classes) > 1)} {', '.join(splits.classes)}"
    return f"of {len(splits.classes)} {'grades' if splits.train.task == GRADES else 'classes'}"


def describe_classifier(classifier: TorchClassifier) -> str:
    """Returns image size and shape of a model as text."""
    if isinstance(classifier, ModuleClassifier):
        return f"{'x'.join(map(str, classifier.preprocess.image_size))} px; {classifier.architecture}"
    config = classifier.vit.config
    return f"{config.image_size} px; ViT of width {config.width} and depth {config.depth}, patch {config.patch}"
