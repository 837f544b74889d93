"""Fields of a dataclass -> options of a parser, so that a recipe's fields are written down once."""

import argparse
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vitrail.model.config import Position
from vitrail.options import literal_values, option_parser
from vitrail.weights.config_json import POSITIONS


def add_fields(parser: argparse.ArgumentParser, title: str, kind: type, names: Iterable[str]) -> None:
    """An option for each of these fields of a dataclass; only options that were given appear in the namespace."""
    group = parser.add_argument_group(title)
    hints = get_type_hints(kind)
    wanted = set(names)
    for each in fields(kind):
        if each.name not in wanted:
            continue
        flag = "--" + each.name.replace("_", "-")
        options: dict[str, Any] = {"dest": each.name, "default": argparse.SUPPRESS, "help": each.metadata.get("help")}
        hint = hints[each.name]
        if hint is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif get_origin(hint) is Literal:
            group.add_argument(flag, choices=get_args(hint), **options)
        elif hint == Position:
            group.add_argument(flag, choices=list(POSITIONS), **options)
        else:
            group.add_argument(flag, type=option_parser(hint), metavar=metavar(hint), **options)


def metavar(hint: Any) -> str:
    """N for whole numbers, X for others, and the words that are allowed."""
    numbers = ["N"] if int in (hint, *get_args(hint)) else ["X"] if float in (hint, *get_args(hint)) else []
    return "|".join([*numbers, *literal_values(hint)])
