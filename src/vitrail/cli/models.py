"""List what can be trained: the sizes of ViTs by name, and the recipes."""

import argparse

from rich.table import Table

from vitrail.cli.main import Answer
from vitrail.train.recipes import RECIPES
from vitrail.weights.sizes import rows


def arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(arguments: argparse.Namespace) -> Answer:
    """The tables."""
    sizes = rows()
    recipes = [{"recipe": name, "about": " ".join(r.about.split()), "model": r.model} for name, r in RECIPES.items()]
    table = Table("size", "width", "depth", "heads", "MLP", "patch", "parameters", box=None, header_style="bold")
    for row in sizes:
        *numbers, parameters = list(row.values())[1:]
        table.add_row(row["size"], *map(str, numbers), f"{parameters:,}")
    about = Table("recipe", "what it is", box=None, header_style="bold")
    for recipe in recipes:
        about.add_row(str(recipe["recipe"]), str(recipe["about"]))
    return Answer({"sizes": sizes, "recipes": recipes}, [table, "", about])
