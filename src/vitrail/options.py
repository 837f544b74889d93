"""Fields of a frozen dataclass that say in one place what they are, what they may be, and how they are checked."""

import argparse
import math
import types
from collections.abc import Callable
from dataclasses import field, fields
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vitrail.errors import UsageError, did_you_mean


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A field with a default, a help text and the bounds of its value, if it is a number."""
    bounds = {"least": least, "above": above, "most": most, "below": below}
    return field(default=default, metadata={"help": help, **{k: v for k, v in bounds.items() if v is not None}})


def check_fields(value: Any) -> None:
    """Raises `UsageError` naming the first field whose value is not of its type or not within its bounds."""
    check_values(type(value), vars(value))


def check_values(kind: type, values: dict[str, Any]) -> None:
    """The same for values that are to become fields of a dataclass; a name that it does not have is an error."""
    known = {each.name: each for each in fields(kind)}
    hints = type_hints(kind)
    for name, given in values.items():
        if name not in known:
            raise UsageError(f"there is no field {name!r}", did_you_mean(name, known))
        each, hint = known[name], hints[name]
        if not fits(given, hint) or not within(given, each.metadata):
            choices = [c for part in (hint, *get_args(hint)) if get_origin(part) is Literal for c in get_args(part)]
            if choices and isinstance(given, str):
                raise UsageError(f"{name} {given!r} is not known", did_you_mean(given, choices))
            raise UsageError(f"{name} is {given!r}; it must be {' or '.join(words(hint))}{bounds(each.metadata)}")


@lru_cache
def type_hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return get_type_hints(kind)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; true and false are no numbers, and numbers are finite."""
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint) and isinstance(value, str)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if origin is tuple:
        parts = get_args(hint)
        kinds = parts[:1] * len(value) if parts[-1] is ... and isinstance(value, tuple) else parts
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, origin or hint)


def within(value: Any, limits: Any) -> bool:
    """Whether a number is within its field's bounds; what is no number has none."""
    if not isinstance(value, int | float):
        return True
    return not (
        ("least" in limits and value < limits["least"])
        or ("above" in limits and value <= limits["above"])
        or ("most" in limits and value > limits["most"])
        or ("below" in limits and value >= limits["below"])
    )


def words(hint: Any) -> list[str]:
    """What a type is called in a sentence, none last."""
    if get_origin(hint) is Literal:
        return [", ".join(map(str, get_args(hint)))]
    if get_origin(hint) in (Union, types.UnionType):
        return [word for part in get_args(hint) for word in words(part)]
    if hint == tuple[int, int]:
        return ["two whole numbers"]
    names = {int: "a whole number", float: "a number", bool: "true or false", type(None): "none", str: "text"}
    return [names.get(hint, getattr(hint, "__name__", str(hint)))]


def bounds(limits: Any) -> str:
    """The bounds of a field in a sentence."""
    named = (("least", "at least"), ("above", "above"), ("most", "at most"), ("below", "below"))
    said = [f"{word} {limits[name]}" for name, word in named if name in limits]
    return f", {' and '.join(said)}" if said else ""


def literals(hint: Any) -> list[str]:
    """The words among a field's values."""
    return [word for part in (hint, *get_args(hint)) if get_origin(part) is Literal for word in get_args(part)]


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
