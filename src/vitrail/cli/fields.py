"""Fields of a dataclass -> options of a parser, so that a recipe's fields are written down once."""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vitrail.model.config import POSITIONS, Position


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
            group.add_argument(flag, type=reader(hint), metavar=metavar(hint), **options)


def literals(hint: Any) -> list[str]:
    """The words among a field's values."""
    return [word for part in (hint, *get_args(hint)) if get_origin(part) is Literal for word in get_args(part)]


def metavar(hint: Any) -> str:
    """N for whole numbers, X for others, and the words that are allowed."""
    numbers = ["N"] if int in (hint, *get_args(hint)) else ["X"] if float in (hint, *get_args(hint)) else []
    return "|".join([*numbers, *literals(hint)])


def reader(hint: Any) -> Callable[[str], Any]:
    """A function from the word on the command line to a value: numbers, `none`, HEIGHTxWIDTH, or the field's words."""
    choices = get_args(hint) or (hint,)
    known = literals(hint)

    def read(word: str) -> Any:
        if type(None) in choices and word.lower() == "none":
            return None
        if word in known:
            return word
        if tuple[int, int] in choices and "x" in word:
            height, width = word.split("x")
            return int(height), int(width)
        if not {int, float} & set(choices):
            raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(known)}")
        return float(word) if float in choices else int(word)

    read.__name__ = " or ".join([*(kind.__name__ for kind in choices if isinstance(kind, type)), *known])
    return read
