"""List the recipes, or print the values of one.

A recipe is a set of training settings. NAME is a built-in recipe or a TOML or JSON file. `vitrail train --recipe NAME`
uses it, and every field can be changed by the option of the same name.
"""

import argparse
import dataclasses
from typing import Any

from vitrail.cli.answer import Answer
from vitrail.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="a recipe's name or file (default: list all recipes)")


def run(arguments: argparse.Namespace) -> Answer:
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
    document = recipe.to_json()
    model: dict[str, Any] = document["model"]
    model_help = {field.name: field.metadata["help"] for field in dataclasses.fields(ViTConfig)}
    for field_name, value in model.items():
        shown = value["kind"] if isinstance(value, dict) else format_default(value)
        table.add_row(field_name, f"{shown} *", model_help[field_name])
    lines: list[Any] = [f"{recipe.name}: {' '.join(recipe.description.split())}", "", table]
    lines += ["", "* differs from the field's default; other fields of the model are chosen from the data"]
    return Answer(document, lines)
