"""List the recipes, or print the values of one.

A recipe is a set of training settings. NAME is a built-in recipe or a TOML or JSON file. `vitrail train --recipe NAME`
uses it, and every field can be changed by the option of the same name.

--import writes the recipe of a training in timm, torchvision or ultralytics, and lists the settings that a recipe
cannot have. FILE is timm's or ultralytics' args.yaml, a checkpoint of timm's or torchvision's train.py, or a text file
with a command line of torchvision's.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import count
from vitrail.cli.parser import Parser
from vitrail.errors import UsageError

if TYPE_CHECKING:
    from vitrail.migration.settings import ImportedRecipe


def add_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="a recipe's name or file (default: list all recipes)")
    parser.add_argument("--import", dest="file", metavar="FILE", help="settings of another library (default: none)")
    parser.add_argument("--out", metavar="FILE", help="with --import: write the recipe there (default: print it)")
    parser.add_argument(
        "--processes", type=count(), metavar="COUNT",
        help="with --import: processes of that training, whose batches add up (default: what FILE says, else 1)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> Answer:
    if arguments.file is not None:
        if arguments.name is not None:
            raise UsageError("--import makes a recipe, and NAME is another one", "leave out one of them")
        return import_settings(Path(arguments.file), arguments.out, arguments.processes)
    for option, value in (("--out", arguments.out), ("--processes", arguments.processes)):
        if value is not None:
            raise UsageError(f"{option} is for a recipe of another library", "add --import FILE")
    return list_recipes() if arguments.name is None else show_recipe(arguments.name)


def list_recipes() -> Answer:
    from rich.table import Table

    from vitrail.plugins import load_entry_points
    from vitrail.training.recipes import RECIPES

    load_entry_points()
    rows = [{"recipe": name, "description": " ".join(each.description.split())} for name, each in RECIPES.items()]
    table = Table("recipe", "description", box=None, header_style="bold")
    for row in rows:
        table.add_row(row["recipe"], row["description"])
    return Answer({"recipes": rows}, [table, "", "vitrail recipe NAME prints the values of one"])


def show_recipe(name: str) -> Answer:
    """Prints every field of a recipe with its meaning; a * marks values that differ from the field's default."""
    from rich.table import Table

    from vitrail.cli.field_options import format_default
    from vitrail.model.config import ViTConfig
    from vitrail.training.recipes import find_recipe

    recipe = find_recipe(name)
    table = Table("field", "value", "meaning", box=None, header_style="bold")
    for part in (recipe, recipe.augment):
        for field in dataclasses.fields(part):
            if "help" not in field.metadata:
                continue
            value = getattr(part, field.name)
            mark = "" if value == field.default else " *"
            table.add_row(field.name, format_default(value) + mark, field.metadata["help"])
    document: dict[str, Any] = recipe.to_json()
    model: dict[str, Any] = document["model"]
    model_help = {field.name: field.metadata["help"] for field in dataclasses.fields(ViTConfig)}
    for field_name, value in model.items():
        shown = value["kind"] if isinstance(value, dict) else format_default(value)
        table.add_row(field_name, f"{shown} *", model_help[field_name])
    lines: list[Any] = [f"{recipe.name}: {' '.join(recipe.description.split())}", "", table]
    lines += ["", "* differs from the field's default; other fields of the model are chosen from the data"]
    return Answer(document, lines)


def import_settings(file: Path, out: str | None, processes: int | None) -> Answer:
    """Writes or prints the recipe of a training in another library, and lists what it does not have."""
    from vitrail.console import log
    from vitrail.files import check_new_folder, write_text
    from vitrail.migration.files import import_recipe
    from vitrail.migration.recipe_file import changed_fields, to_toml

    if out is not None:
        check_new_folder(Path(out))
        if Path(out).is_dir():
            raise UsageError(f"{out} is a folder", "name a new file, such as recipe.toml")
    imported = import_recipe(file, processes)
    text = to_toml(imported, file.name)
    lines = describe_import(imported, out or "FILE.toml")
    document = {
        "library": imported.library,
        "model": imported.model,
        "recipe": changed_fields(imported.recipe),
        "missing": [vars(each) for each in imported.missing],
        "ignored": imported.ignored,
        "off": imported.off,
        "out": out,
    }
    if out is None:
        for line in lines:
            log(line)
        return Answer(document, [text.rstrip()])
    write_text(Path(out), text)
    return Answer(document, [f"the recipe: {out}", *lines])


def describe_import(imported: "ImportedRecipe", file: str) -> list[str]:
    """Returns how each setting was used, and the command that trains with the recipe."""
    lines = [f"not in this recipe: {each}" for each in imported.missing]
    if imported.ignored:
        lines.append(f"not part of a recipe (paths, logs, speed): {', '.join(imported.ignored)}")
    lines.append(f"{len(imported.off)} settings are off" + (f": {', '.join(imported.off)}" if imported.off else ""))
    start = f" --from {imported.model}" if imported.model else ""
    return [*lines, f"train with: vitrail train DATA --recipe {file}{start}"]
