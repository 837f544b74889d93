"""A recipe -> the text of a TOML file that has it."""

import json
from typing import Any

from vitrail.migration.settings import ImportedRecipe
from vitrail.model.config import position_kind
from vitrail.training.recipe import RECIPE_FIELDS, Recipe
from vitrail.training.recipes import DEFAULT_TRANSFER_RECIPE, RECIPES

BASE = DEFAULT_TRANSFER_RECIPE  # it sets no field of the model


def changed_fields(recipe: Recipe) -> dict[str, Any]:
    """Returns the fields that differ from those of the base, in the order of the recipe."""
    base = RECIPES[BASE]
    values: dict[str, Any] = {}
    model: dict[str, Any] = {**recipe.model}
    for name, group in RECIPE_FIELDS.items():
        if group == "model":
            if name in model:
                value = model[name]
                values[name] = position_kind(value) if name == "position" else value
            continue
        value, default = (getattr(each if group == "recipe" else each.augment, name) for each in (recipe, base))
        if value != default:
            values[name] = value
    return values


def to_toml(imported: ImportedRecipe, source: str) -> str:
    """Returns the file, with the settings that are missing as comments."""
    lines = [f"# the settings of {source}, from {imported.library}", f'base = "{BASE}"']
    lines += [f"{name} = {format_toml(value)}" for name, value in changed_fields(imported.recipe).items()]
    if imported.missing:
        lines += ["", "# not in this recipe:"]
        lines += [f"# {' '.join(str(each).split())}" for each in imported.missing]
    return "\n".join(lines) + "\n"


def format_toml(value: Any) -> str:
    """Returns a value as TOML; None is the word none."""
    if value is None:
        return '"none"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(format_toml, value))}]"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
