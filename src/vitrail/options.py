"""Dataclass fields with a help text and bounds, which the command line, the checks and the documents read."""

import argparse
import math
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import field, fields
from functools import lru_cache
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints, is_typeddict

from vitrail.errors import UsageError, did_you_mean
from vitrail.parts import check_part

MAX_VALUE_LENGTH = 200  # of a value in a sentence
BOUND_NAMES = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", type(None): "none", str: "text"}


def option(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    part: str | None = None,
) -> Any:
    """Returns a dataclass field with a default, a help text and, for a number, its bounds (as in pydantic).

    `part` is the kind of parts that the field names (`parts.py`); its type lists the built-in ones.
    """
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt, "part": part}
    return field(default=default, metadata={"help": help, **{k: v for k, v in bounds.items() if v is not None}})


OTHER_NAMES = {  # of timm and transformers, for fields that have another name here
    "embed_dim": "width", "hidden_size": "width", "num_layers": "depth", "num_hidden_layers": "depth",
    "num_heads": "heads", "num_attention_heads": "heads", "intermediate_size": "mlp_width", "mlp_dim": "mlp_width",
    "mlp_ratio": "mlp_width", "hidden_act": "mlp", "patch_size": "patch", "img_size": "image_size",
    "in_chans": "channels", "num_channels": "channels", "num_classes": "classes", "num_labels": "classes",
    "reg_tokens": "prefix_tokens", "num_register_tokens": "prefix_tokens", "global_pool": "pool",
    "init_values": "layer_scale", "layerscale_value": "layer_scale", "drop_path_rate": "drop_path",
    "layer_norm_eps": "norm_eps", "proj_drop_rate": "dropout", "hidden_dropout_prob": "dropout",
    "attn_drop_rate": "attention_dropout", "attention_probs_dropout_prob": "attention_dropout",
}  # fmt: skip


class Checked:
    """Base class of frozen dataclasses; raises `UsageError` for an unknown field and for an impossible value."""

    def __new__(cls, *_: object, **values: object) -> Self:
        known = [each.name for each in fields(cls)]  # type: ignore[arg-type]
        for name in values:
            if name not in known:
                raise UsageError(f"{cls.__name__} has no field {name!r}", hint_for_name(name, known))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_fields(self)


def hint_for_name(name: str, known: Collection[str]) -> str | None:
    """Returns what to use instead of a field that does not exist."""
    other = OTHER_NAMES.get(name)
    return f"use {other}" if other in known else did_you_mean(name, known)


def check_fields(value: Any) -> None:
    """Raises `UsageError` for the first field of a dataclass whose value has the wrong type or is out of bounds."""
    check_values(type(value), vars(value))


def check_values(dataclass_type: type, values: Mapping[str, Any]) -> None:
    """Raises `UsageError` for the first value that the dataclass cannot take, or whose name it does not have."""
    known = {each.name: each for each in fields(dataclass_type)}
    hints = field_types(dataclass_type)
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"there is no field {name!r}", hint_for_name(name, known))
        limits, hint = known[name].metadata, hints[name]
        if matches_type(value, hint) and is_within_bounds(value, limits):
            if "part" in limits and isinstance(value, str):
                check_part(name, limits["part"], value, literal_values(hint))
            continue
        if isinstance(value, str) and (choices := literal_values(hint)):
            raise UsageError(f"{name} {value!r} is not known", did_you_mean(value, choices))
        expected = f"{' or '.join(describe_type(hint))}{describe_bounds(limits)}"
        raise UsageError(
            f"{name} is {describe_value(value)}; it must be {expected}", hint_to_register(name, value, limits)
        )


def describe_value(value: Any) -> str:
    """Returns a value for a sentence: its text if that is short, else its type."""
    text = repr(value)
    return text if len(text) <= MAX_VALUE_LENGTH and "\n" not in text else f"a {type(value).__name__}"


def hint_to_register(field: str, value: Any, limits: Mapping[str, Any]) -> str | None:
    """Returns how to use an object as a part, if the field names parts and the value is such an object."""
    if "part" not in limits or isinstance(value, str | int | float | None):
        return None
    return f'name it first: vitrail.register("{limits["part"]}", "mine", ...), then {field}="mine"'


@lru_cache
def field_types(dataclass_type: type) -> dict[str, Any]:
    return get_type_hints(dataclass_type)


def matches_type(value: Any, hint: Any) -> bool:
    """Returns whether a value has a type. Booleans are not numbers here, and numbers must be finite."""
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint) and isinstance(value, str)
    if origin in (Union, types.UnionType):
        return any(matches_type(value, part) for part in get_args(hint))
    if origin is tuple:
        parts = get_args(hint)
        expected = parts[:1] * len(value) if parts[-1] is ... and isinstance(value, tuple) else parts
        return isinstance(value, tuple) and len(value) == len(expected) and all(map(matches_type, value, expected))
    if is_typeddict(hint):
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, origin or hint)


def is_within_bounds(value: Any, limits: Mapping[str, Any]) -> bool:
    """Returns whether a number is within its field's bounds. Values that are not numbers have no bounds."""
    if not isinstance(value, int | float):
        return True
    return not (
        ("ge" in limits and value < limits["ge"])
        or ("gt" in limits and value <= limits["gt"])
        or ("le" in limits and value > limits["le"])
        or ("lt" in limits and value >= limits["lt"])
    )


def describe_type(hint: Any) -> list[str]:
    """Returns the names of a type's alternatives for a sentence: "a whole number", "none"."""
    if get_origin(hint) is Literal:
        return [", ".join(map(str, get_args(hint)))]
    if get_origin(hint) in (Union, types.UnionType):
        return [name for part in get_args(hint) for name in describe_type(part)]
    if hint == tuple[int, int]:
        return ["two whole numbers"]
    if hint == tuple[str, ...]:
        return ["several texts"]
    return [TYPE_NAMES.get(hint, getattr(hint, "__name__", str(hint)))]


def describe_bounds(limits: Mapping[str, Any]) -> str:
    """Returns the bounds of a field as the end of a sentence: ", at least 0 and below 1"."""
    parts = [f"{text} {limits[name]}" for name, text in BOUND_NAMES.items() if name in limits]
    return f", {' and '.join(parts)}" if parts else ""


def literal_values(hint: Any) -> list[str]:
    """Returns the strings that a field may have."""
    return [value for part in (hint, *get_args(hint)) if get_origin(part) is Literal for value in get_args(part)]


def option_parser(hint: Any) -> Callable[[str], Any]:
    """Returns a function that parses a command-line argument: a number, `none`, HEIGHTxWIDTH or a known string."""
    alternatives = get_args(hint) or (hint,)
    known = literal_values(hint)

    def parse(text: str) -> Any:
        if type(None) in alternatives and text.lower() == "none":
            return None
        if text in known or (str in alternatives and not (int in alternatives and text.isdecimal())):
            return text
        if tuple[int, int] in alternatives and "x" in text:
            height, width = text.split("x")
            return int(height), int(width)
        if not {int, float} & set(alternatives):
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(known)}")
        return float(text) if float in alternatives else int(text)

    # argparse prints the name in "invalid ... value"
    parse.__name__ = " or ".join([*(part.__name__ for part in alternatives if isinstance(part, type)), *known])
    return parse
