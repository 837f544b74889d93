"""Which run to resume, if any, and which recipe to train with."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.console import log
from vitrail.errors import UsageError
from vitrail.model.config import ViTConfig
from vitrail.runs.claim import RUNS, check_out, is_free
from vitrail.runs.folder import RunFolder
from vitrail.runs.names import newest_folder, numbered_folders
from vitrail.runs.pretrained import Model
from vitrail.training.launch import current_launch
from vitrail.training.recipe import RECIPE_FIELDS, Recipe, flatten_recipe
from vitrail.training.recipes import DEFAULT_RECIPE, DEFAULT_TRANSFER_RECIPE, RECIPES, find_recipe

MAX_NAMED_FIELDS = 3  # in an error
RESULT_NEUTRAL_FIELDS = ("workers", "image_cache_gib")  # fields of a recipe that do not change the result


def find_run_to_resume(name: str, out: str | Path | None, resume: bool) -> RunFolder | None:
    """Returns the run to resume, or None for a new run, whose folder must then be free.

    With `resume` a new run starts if there is none yet, so that one command starts and resumes a job. Without it, a
    launcher that restarts its processes (torchrun) resumes the run that they began.
    """
    if resume:
        folder = find_run(name, out)
        if folder.config_file.exists() or not is_free(folder.path):
            return folder
        log(f"there is no run in {folder.path} to resume, so a new one starts")
    launch = current_launch()
    if launch and (restarted := find_run_of_launch(launch.id, name, out, launch.started_at)):
        return restarted
    check_out(out)
    return None


def find_run(name: str, out: str | Path | None) -> RunFolder:
    """Returns the run in `out`, else the newest of runs/NAME, runs/NAME-2, ..."""
    if out is not None:
        return RunFolder(Path(out))
    return RunFolder(newest_folder(numbered_folders(RUNS, name), lambda path: RunFolder(path).config_file.exists()))


def find_run_of_launch(
    launch_id: str, name: str, out: str | Path | None, launched_at_s: float | None = None
) -> RunFolder | None:
    """Returns the run that a launch began before its processes were restarted; None if it began none.

    A launch may have the name of an earlier one: a run that was finished before its launcher started (seconds since
    1970) belongs to the earlier one.
    """
    folders: Iterable[Path] = numbered_folders(RUNS, name) if out is None else [Path(out)]
    for path in folders:
        if not path.exists():
            return None
        folder = RunFolder(path)
        if folder.launch_id == launch_id and not (launched_at_s and folder.was_finished_before(launched_at_s)):
            return folder
    return None


def describe_model(config: ViTConfig) -> dict[str, Any]:
    """Returns the fields of a model that a recipe may set; channels and classes are those of the data."""
    return {name: getattr(config, name) for name, part in RECIPE_FIELDS.items() if part == "model"}


def request_recipe(recipe: str | Path | Recipe | None, model: Model | None, changes: Mapping[str, Any]) -> Recipe:
    """Returns the recipe of a new run; raises `UsageError` for an unknown one."""
    default = DEFAULT_RECIPE if model is None else DEFAULT_TRANSFER_RECIPE
    return find_recipe(default if recipe is None else recipe, **changes)


def resume_recipe(folder: RunFolder, recipe: str | Path | Recipe | None, changes: Mapping[str, Any]) -> Recipe:
    """Returns the recipe that a run was started with; raises `UsageError` if another one is requested.

    Fields that do not change the result may change. The name of a built-in recipe matches any changes of it that
    the run was started with; a file or a `Recipe` must agree in every field.
    """
    started = folder.load_recipe()
    started = started.with_changes(**{name: changes[name] for name in RESULT_NEUTRAL_FIELDS if name in changes})
    if recipe is None or str(recipe) in RECIPES:
        requested = replace(started, name=started.name if recipe is None else str(recipe)).with_changes(**changes)
    else:
        neutral = {name: getattr(started, name) for name in RESULT_NEUTRAL_FIELDS}
        requested = find_recipe(recipe, **changes).with_changes(**neutral)
    if requested != started:
        raise another_recipe_error(folder, started, requested)
    return started


def another_recipe_error(folder: RunFolder, started: Recipe, requested: Recipe) -> UsageError:
    """Returns the error for a recipe that is not the one a run was started with; it names the fields that differ."""
    before, now = flatten_recipe(started), flatten_recipe(requested)
    fields = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    differences = ", ".join(
        f"{name} is {format_value(now.get(name))}, before {format_value(before.get(name))}"
        for name in fields[:MAX_NAMED_FIELDS]
    )
    more = f" and {len(fields) - MAX_NAMED_FIELDS} more fields" if len(fields) > MAX_NAMED_FIELDS else ""
    hint = "resume it without recipe options"
    if "epochs" in fields:
        data = folder.data_source or "DATA"
        hint += ", or train its weights further in a new run: " + shlex.join(
            ["vitrail", "train", data, "--from", str(folder.path), "--epochs", str(now["epochs"])]
        )
    return UsageError(f"{folder.path} was started with another recipe: {differences}{more}", hint)


def format_value(value: Any) -> str:
    """Returns a value of a recipe as text."""
    return "not set" if value is None else str(value)
