"""Which run is meant, a new one or one to go on with, and by which recipe."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.errors import UsageError
from vitrail.runs.folder import RunFolder, find_run, find_run_of_job, refuse_taken
from vitrail.runs.pretrained import Model
from vitrail.training import DEFAULT_RECIPE, DEFAULT_TRANSFER_RECIPE, RECIPES, Recipe, find_recipe
from vitrail.training.launch import current_launch

SAME_BITS = ("workers", "image_cache_gib")  # fields of a recipe that leave every bit as it is


def wanted(
    data: str | Path,
    out: str | Path | None,
    model: Model | None,
    recipe: str | Path | Recipe | None,
    changes: dict[str, Any],
    resume: bool,
) -> tuple[RunFolder | None, Recipe]:
    """The run to go on with, if there is one, and the recipe.

    A launcher that starts dead processes again says the same words again: what they began is gone on with.
    """
    launch = current_launch()
    job, launched_at = (launch.id, launch.started_at) if launch else (None, None)
    folder = find_run(data, out) if resume else find_run_of_job(job, data, out, launched_at)
    if folder:
        return folder, asked_again(folder, recipe, changes)
    refuse_taken(out)
    return None, find_recipe(
        (DEFAULT_RECIPE if model is None else DEFAULT_TRANSFER_RECIPE) if recipe is None else recipe, **changes
    )


def asked_again(folder: RunFolder, recipe: str | Path | Recipe | None, changes: dict[str, Any]) -> Recipe:
    """The recipe that a run was started with; raises `UsageError` where another one is wished for.

    What leaves every bit as it is may be changed: where images are kept and who reads them. The name of a built-in
    recipe stands for whatever the run made of it; a file or a `Recipe` says every field.
    """
    asked = folder.load_recipe().with_changes(**{name: changes[name] for name in SAME_BITS if name in changes})
    if recipe is None or str(recipe) in RECIPES:
        wished = replace(asked, name=asked.name if recipe is None else str(recipe)).with_changes(**changes)
    else:
        wished = find_recipe(recipe, **changes).with_changes(**{name: getattr(asked, name) for name in SAME_BITS})
    if wished != asked:
        raise UsageError(f"{folder.path} was started with another recipe", "resume it without recipe options")
    return asked
