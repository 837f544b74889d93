"""List what is known by name: the classifiers that come with vitrail, public checkpoints (the cards), sizes, recipes.

With words, those whose names hold all of them: vitrail models dinov2 small. One that comes with vitrail is described in
full: vitrail models cifar10-small
"""

import argparse
from typing import Any

from rich.markdown import Markdown
from rich.table import Column, Table

from vitrail.cli.main import Answer
from vitrail.errors import UsageError, did_you_mean
from vitrail.training.recipes import RECIPES
from vitrail.weights.bundled import bundled_classifiers, read_bundled_card
from vitrail.weights.cards import Card, load_cards
from vitrail.weights.config_json import config_to_json
from vitrail.weights.sizes import get_size_name, list_sizes


def arguments(parser: argparse.ArgumentParser) -> None:
    """The words to look for."""
    parser.add_argument("words", metavar="WORD", nargs="*", help="show the cards whose names hold every word")


def run(arguments: argparse.Namespace) -> Answer:
    """The tables."""
    found = [
        card_row(card)
        for card in load_cards().values()
        if all(word.lower() in card.name.lower() for word in arguments.words)
    ]
    inside = [name for name in bundled_classifiers() if all(word.lower() in name for word in arguments.words)]
    if arguments.words and not found and not inside:
        near = did_you_mean(arguments.words[0], [*load_cards(), *bundled_classifiers()])
        raise UsageError(f"no model is called {' '.join(arguments.words)!r}", near)
    ours = [{"name": name, "card": read_bundled_card(name)} for name in inside]
    listed = Table(
        Column("card", no_wrap=True), "size", "pixels", "outputs", "top-1", "license", box=None, header_style="bold"
    )
    for each in found:
        top1 = f"{each['accuracy']['top1']:.1f}" if each["accuracy"] else "-"
        outputs = each["labels"] or ("embedding" if each["outputs"] else "features")
        listed.add_row(each["card"], each["size"], str(each["image_size"]), outputs, top1, each["license"])
    if arguments.words:
        return Answer(
            {"ours": ours, "cards": found}, [*(Markdown(each["card"]) for each in ours), *[listed][: len(found)]]
        )
    sizes = list_sizes()
    recipes = [
        {"recipe": name, "about": " ".join(r.description.split()), "model": r.model} for name, r in RECIPES.items()
    ]
    table = Table("size", "width", "depth", "heads", "MLP", "patch", "parameters", box=None, header_style="bold")
    for row in sizes:
        *numbers, parameters = list(row.values())[1:]
        table.add_row(row["size"], *map(str, numbers), f"{parameters:,}")
    about = Table("recipe", "what it is", box=None, header_style="bold")
    for recipe in recipes:
        about.add_row(str(recipe["recipe"]), str(recipe["about"]))
    names = ", ".join(each["name"] for each in ours)
    shown = [
        f"comes with vitrail: {names} (vitrail models {inside[0]} says all about it)",
        "",
        listed,
        "",
        table,
        "",
        about,
    ]
    return Answer({"ours": ours, "cards": found, "sizes": sizes, "recipes": recipes}, shown)


def card_row(card: Card) -> dict[str, Any]:
    """A card in a line; its accuracy is what its publisher reports on ImageNet-1k."""
    config = card.build_config()
    return {
        "card": card.name,
        "size": get_size_name(config_to_json(config)),
        "image_size": config.image_size,
        "layout": card.get_layout().description,
        "labels": card.labels,
        "outputs": config.classes,
        "license": card.license,
        "source": card.source,
        "accuracy": card.accuracy,
    }
