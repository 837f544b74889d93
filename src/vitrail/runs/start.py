"""What a run needs before its first step: the data, opened and checked, and the model that training starts from."""

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vitrail.classifier import Classifier
from vitrail.console import log
from vitrail.data import Preprocess, Splits, open_data
from vitrail.data.check import CheckReport
from vitrail.errors import UsageError
from vitrail.machine import GIB, keep_freed_memory
from vitrail.model import ViT, ViTConfig
from vitrail.model.init import initialize
from vitrail.runs.data import check_before_training, drop_unreadable, in_memory, list_unreadable, refuse_small
from vitrail.runs.folder import RunFolder, Unreadable
from vitrail.runs.pretrained import Model, Pretrained, begin, pretrained, pretrained_again
from vitrail.runs.resolve import SAME_BITS
from vitrail.training import Recipe
from vitrail.training.data_defaults import resolve_recipe
from vitrail.training.distributed import World
from vitrail.training.optimizers import OPTIMIZERS
from vitrail.training.transfer import resolve_transfer_recipe
from vitrail.version import __version__


@dataclass(frozen=True)
class Ready:
    """All that a run needs before its first step; every process that trains has it."""

    classifier: Classifier  # with the weights that training starts from
    head: str  # kept, reordered or new
    start: Pretrained | None
    splits: Splits
    unreadable: Unreadable
    recipe: Recipe  # settled: with sizes, epochs and batch
    report: CheckReport | None  # what the check of the data found; the main process has it
    goes_on: bool  # whether there is a run to go on with


def prepared(
    world: World,
    folder: RunFolder | None,
    data: str | Path,
    asked: Recipe,
    model: Model | None,
    *,
    fsdp: bool,
    check_data: bool,
    torch_files: bool,
    score_test: bool,
) -> Ready:
    """The data, opened and checked, and the model before its first step; `folder` is the run to go on with."""
    place = torch.device("cpu") if world.is_sharded else world.device  # where a model is made before it is spread
    with world.raise_on_all(), world.local_main_first():
        refuse_unshared(asked, world)
        if fsdp and world.size == 1:
            alone_with_shards(goes_on=folder is not None)
        start = (
            pretrained_again(folder, model, asked, place, torch_files)
            if folder
            else pretrained(model, asked, place, torch_files)
        )
        splits = open_data(
            data,
            channels=start.classifier.preprocess.channels if start else None,
            validation=asked.validation_fraction,
            test=asked.test_fraction,
            split_seed=asked.split_seed,
            missing_ok=asked.skip_unreadable,
        )
        if not score_test:
            splits = replace(splits, test=None)
        if folder:
            folder.check_data(splits.fingerprint)
    with world.raise_on_all():
        fit = start.classifier.preprocess.fit if start else "pad"
        report = check_before_training(data, asked, fit) if check_data and world.is_main else None
    unreadable = world.broadcast(folder.load_unreadable() if folder else list_unreadable(report))
    with world.raise_on_all():
        splits = drop_unreadable(splits, unreadable)
        splits = in_memory(splits, int(asked.image_cache_gib * GIB) // world.local_size, asked.skip_unreadable)
        theirs = start.classifier if start else None
        full, config, preprocess = (
            resolve_transfer_recipe(asked, splits, theirs.vit.config, theirs.preprocess)
            if theirs
            else resolve_recipe(asked, splits)
        )
        if world.is_main:
            refuse_small(splits, preprocess, report, asked.skip_unreadable)
        for note in splits.notes:
            log(note)
        keep_freed_memory()
        classifier, head = begun(start, config, preprocess, splits, full, place)
    return Ready(classifier, head, start, splits, unreadable, full, report, folder is not None)


def refuse_unshared(recipe: Recipe, world: World) -> None:
    """Raises `UsageError` where a recipe does not go with several processes, or not with a sharded model."""
    if world.size > 1 and recipe.train_on == "features":
        raise UsageError(f"recipe {recipe.name} fits its head in one process", "start one process")
    if world.is_sharded and OPTIMIZERS[recipe.optimizer].needs_full_matrices:
        raise UsageError("Muon needs whole matrices, and --fsdp shards them", "use adamw, or leave out --fsdp")
    if world.is_sharded and recipe.lora_rank:
        raise UsageError("LoRA's updates are merged into whole matrices, and --fsdp shards them", "leave out --fsdp")


def alone_with_shards(goes_on: bool) -> None:
    """Raises `UsageError` where a run would begin with nobody to shard its model with.

    One that goes on may have lost the others, and only says so.
    """
    if not goes_on:
        raise UsageError("--fsdp shards over several processes, and this is one", "add --processes N")
    log("warning: --fsdp shards over several processes; this one goes on with the whole model")


def begun(
    start: Pretrained | None,
    config: ViTConfig,
    preprocess: Preprocess,
    splits: Splits,
    recipe: Recipe,
    place: torch.device,
) -> tuple[Classifier, str]:
    """The classifier as training finds it, and whether its head is kept, reordered or new."""
    if start:
        vit, head = begin(start, config, splits, recipe)
    else:
        vit, head = starting_vit(config, recipe), "new"
    came_from = {"from": start.origin(head)} if start else {}
    about = {**came_from, **origin(recipe, splits)}
    return Classifier(vit.to(place), splits.classes, preprocess, origin=about), head


def starting_vit(config: ViTConfig, recipe: Recipe) -> ViT:
    """The weights that training starts from: drawn by the recipe's seed."""
    torch.manual_seed(recipe.seed)
    vit = ViT(config)
    initialize(vit, patch_init_std=recipe.patch_init_std, zero_init_residual=recipe.zero_init_residual)
    return vit


def origin(recipe: Recipe, splits: Splits) -> dict[str, Any]:
    """Where a classifier's weights come from, for its artefact; who read the images is not part of it."""
    return {
        "recipe": {name: value for name, value in recipe.to_json().items() if name not in SAME_BITS},
        "seed": recipe.seed,
        "versions": {"vitrail": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "data": {
            "name": splits.name,
            "fingerprint": splits.fingerprint,
            "images": {name: len(images) for name, images in splits.as_dict().items()},
            "unreadable": splits.unreadable,
            "split": {
                "test": recipe.test_fraction,
                "validation": recipe.validation_fraction,
                "seed": recipe.split_seed,
            },
        },
    }
