"""What a cross-validation trains and where: the images of each fold, the recipes, and how it is started and resumed."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.addresses import PYTHON_PREFIX
from vitrail.data.folds import assign_folds
from vitrail.data.open import open_source
from vitrail.data.python_data import Data
from vitrail.data.source import Listing, Source, name_of_data
from vitrail.errors import UsageError, VitrailError
from vitrail.files import create_json, read_json_object
from vitrail.runs.claim import RUNS, check_out
from vitrail.runs.names import newest_folder, numbered_folders
from vitrail.runs.pretrained import Model
from vitrail.runs.resolve import RESULT_NEUTRAL_FIELDS, request_recipe
from vitrail.runs.result import Run
from vitrail.training.recipe import Recipe, flatten_recipe, recipe_from_json

CONFIG_FILE = "folds.json"


@dataclass(frozen=True)
class Plan:
    """What a cross-validation trains, and where."""

    source: Source
    listing: Listing  # the images that are divided into folds
    fold_of: np.ndarray  # (n,), from 0
    recipe: Recipe
    folder: Path
    command: str  # that resumes it

    @property
    def folds(self) -> int:
        return int(self.fold_of.max()) + 1

    def fold_source(self, fold: int) -> Source:
        """Returns the data of a fold: its images are for test, those of the other folds for training."""
        held = self.fold_of == fold
        parts = {"train": self.listing.subset(np.flatnonzero(~held)), "test": self.listing.subset(np.flatnonzero(held))}
        return self.part_source(parts | self.source_split("validation"))

    def final_source(self) -> Source:
        """Returns the data of the final run: all images are for training, besides given validation and test images."""
        return self.part_source({"train": self.listing} | self.source_split("validation") | self.source_split("test"))

    def source_split(self, split: str) -> dict[str, Listing]:
        """Returns a split that the source has."""
        return {split: self.source.splits[split]} if split in self.source.splits else {}

    def part_source(self, splits: dict[str, Listing]) -> Source:
        return replace(self.source, splits=splits, notes=[], left_out=[], address=f"{PYTHON_PREFIX}{self.source.name}")

    def final_recipe(self, runs: list[Run]) -> Recipe:
        """Returns the recipe of the final run, which has no validation images unless the data has some.

        It trains for the median of the folds' best epochs if the recipe stops early.
        """
        if "validation" in self.source.splits:
            return self.recipe
        changes: dict[str, Any] = {"validation_fraction": 0.0}
        if self.recipe.patience is not None:
            best = [run.result["best_epoch"] for run in runs if "best_epoch" in run.result]
            changes |= {"patience": None, "epochs": max(1, round(float(np.median(best))))}
        return replace(self.recipe, **changes)


def make_plan(
    data: Data,
    folds: int,
    model: Model | None,
    recipe: str | Path | Recipe | None,
    out: str | Path | None,
    changes: Mapping[str, Any],
    *,
    resume: bool,
    final: bool,
) -> Plan:
    """Opens the data, divides it, and begins or finds the folder; raises as `cross_validate`."""
    name = name_of_data(data)
    folder = find_folder(name, out) if resume else None
    config = read_config(folder) if folder else None
    requested = resume_recipe(config, recipe, changes) if config else request_recipe(recipe, model, changes)
    source = open_source(
        data, missing_ok=requested.skip_unreadable, task=requested.task, group_pattern=requested.group_pattern
    )
    origin = next((split for split in ("all", "train") if split in source.splits), None)
    if origin is None:
        raise VitrailError(f"{source.address} has no training images", "add a folder named train")
    fingerprint = source.fingerprint
    if config and (config["fingerprint"], config["folds"]) != (fingerprint, folds):
        what = "data" if config["fingerprint"] != fingerprint else f"number of folds, {config['folds']}"
        raise UsageError(f"{folder} was started with another {what}", "resume it as it was started")
    fold_of = assign_folds(source.splits[origin], folds, requested.split_seed)
    if folder is None or config is None:
        config = {"data": source.address, "folds": folds, "fingerprint": fingerprint, "recipe": requested.to_json()}
        folder = begin_folder(config, name, out)
    # the runs get images that have their groups already
    applied = replace(requested, group_pattern=None)
    command = resume_command(source.address, folds, folder, model, final)
    return Plan(source, source.splits[origin], fold_of, applied, folder, command)


def find_folder(name: str, out: str | Path | None) -> Path:
    """Returns `out`, or the newest of runs/NAME, runs/NAME-2, ... that is a cross-validation."""
    if out is not None:
        return Path(out)
    return newest_folder(numbered_folders(RUNS, name), lambda path: (path / CONFIG_FILE).exists())


def begin_folder(config: dict[str, Any], name: str, out: str | Path | None) -> Path:
    """Makes the folder and writes its folds.json; raises `UsageError` if the folder is taken."""
    check_out(out)
    paths = numbered_folders(RUNS, name) if out is None else iter([Path(out)])
    folder = next(path for path in paths if out is not None or not path.exists())
    folder.mkdir(parents=True, exist_ok=True)
    create_json(folder / CONFIG_FILE, config)
    return folder


def read_config(folder: Path) -> dict[str, Any] | None:
    """Returns the content of folds.json; None if there is no cross-validation yet."""
    path = folder / CONFIG_FILE
    if not path.exists():
        return None
    try:
        config = read_json_object(path)
        return config | {"recipe": recipe_from_json(config["recipe"]), "folds": int(config["folds"])}
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise VitrailError(f"{path} is damaged ({error!r})", "start a new cross-validation") from None


def resume_recipe(config: dict[str, Any], recipe: str | Path | Recipe | None, changes: Mapping[str, Any]) -> Recipe:
    """Returns the recipe that was started with; raises `UsageError` for another one. Some fields may change."""
    started: Recipe = config["recipe"]
    started = started.with_changes(**{name: changes[name] for name in RESULT_NEUTRAL_FIELDS if name in changes})
    before, now = flatten_recipe(started), flatten_recipe(started.with_changes(**changes))
    if isinstance(recipe, Recipe):
        now = flatten_recipe(recipe.with_changes(**changes))
    elif recipe is not None and str(recipe) != started.name:
        now = {**now, "recipe": str(recipe)}
    if different := [name for name in now if now[name] != before.get(name)]:
        raise UsageError(
            f"the cross-validation was started with another recipe: {different[0]} is {now[different[0]]}, before "
            f"{before.get(different[0])}",
            "resume it without recipe options",
        )
    return started


def resume_command(address: str, folds: int, folder: Path, model: Model | None, final: bool) -> str:
    """Returns what resumes a cross-validation: a command, or for data or a model of Python a call."""
    if address.startswith(PYTHON_PREFIX) or not (model is None or isinstance(model, str | Path)):
        options = ", model=model" * (model is not None) + ", final=True" * final
        return f"vitrail.cross_validate(data, {folds}, resume=True, out={str(folder)!r}{options})"
    command = ["vitrail", "train", address, "--folds", str(folds), "--resume", "--out", str(folder)]
    command += ["--from", str(model)] if model is not None else []
    return shlex.join(command + ["--final"] * final)
