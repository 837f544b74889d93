"""List the bundled classifiers, public checkpoints (cards) and model sizes.

With words, only names that contain all of them: vitrail models dinov2 small. A bundled classifier is described in full:
vitrail models cifar10-small
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vitrail.cli.answer import Answer
from vitrail.cli.parser import Parser
from vitrail.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

    from vitrail.weights.cards import Card


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "words", metavar="WORD", nargs="*", help="show only cards whose names contain every word (default: all)"
    )


def run(arguments: argparse.Namespace) -> Answer:
    from rich.markdown import Markdown

    from vitrail.weights.bundled import bundled_classifiers, read_bundled_card
    from vitrail.weights.cards import load_cards
    from vitrail.weights.sizes import list_sizes

    terms = [word.lower() for word in arguments.words]
    cards = [describe_card(card) for card in load_cards().values() if all(term in card.name.lower() for term in terms)]
    names = [name for name in bundled_classifiers() if all(term in name for term in terms)]
    if terms and not cards and not names:
        hint = did_you_mean(arguments.words[0], [*load_cards(), *bundled_classifiers()])
        raise UsageError(f"no model is called {' '.join(arguments.words)!r}", hint)
    bundled = [{"name": name, "card": read_bundled_card(name)} for name in names]
    document: dict[str, Any] = {"bundled": bundled, "cards": cards}
    if terms:
        tables = [make_card_table(cards)] if cards else []
        return Answer(document, [*(Markdown(each["card"]) for each in bundled), *tables])
    sizes = list_sizes()
    lines = [
        f"bundled with vitrail: {', '.join(names)} (vitrail models {names[0]} describes it)",
        "",
        make_card_table(cards),
        "",
        make_size_table(sizes),
    ]
    return Answer({**document, "sizes": sizes}, lines)


def make_card_table(cards: list[dict[str, Any]]) -> Table:
    from rich.table import Column, Table

    table = Table(
        Column("card", no_wrap=True), "size", "pixels", "outputs", "top-1", "license", box=None, header_style="bold"
    )
    for card in cards:
        top1 = f"{card['accuracy']['top1']:.1f}" if card["accuracy"] else "-"
        outputs = card["labels"] or ("embedding" if card["outputs"] else "features")
        table.add_row(card["card"], card["size"], str(card["image_size"]), outputs, top1, card["license"])
    return table


def make_size_table(sizes: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("size", "width", "depth", "heads", "MLP", "patch", "parameters", box=None, header_style="bold")
    for row in sizes:
        *numbers, parameters = list(row.values())[1:]
        table.add_row(row["size"], *map(str, numbers), f"{parameters:,}")
    return table


def describe_card(card: Card) -> dict[str, Any]:
    """Returns a card as a row; its accuracy is the publisher's figure on ImageNet-1k."""
    from vitrail.weights.config_json import config_to_json
    from vitrail.weights.sizes import get_size_name

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
