"""Compares JSON documents with their types."""

import json
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, get_args, get_origin, get_type_hints, is_typeddict


def mismatches(value: Any, kind: Any, name: str) -> list[str]:
    """What differs between a JSON value and its type: missing, unknown and mistyped values."""
    if get_origin(kind) is NotRequired:
        return mismatches(value, get_args(kind)[0], name)
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        wrong = [f"{name} lacks {key}" for key in kind.__required_keys__ - value.keys()]
        wrong += [f"{name} has {key}" for key in value.keys() - hints.keys()]
        return wrong + [each for key in value.keys() & hints.keys() for each in mismatches(value[key], hints[key], key)]
    if get_origin(kind) is UnionType:
        options = [mismatches(value, each, name) for each in get_args(kind)]
        return [] if [] in options else options[0]
    if get_origin(kind) is Literal:
        return [] if value in get_args(kind) else [f"{name} is {value!r}"]
    if get_origin(kind) is tuple:  # a list in JSON
        first, *others = get_args(kind)
        is_right = isinstance(value, list) and (others == [...] or len(value) == 1 + len(others))
        return mismatches(value, list[first], name) if is_right else [f"{name} is {value!r}, not {kind}"]
    if (origin := get_origin(kind)) in (list, dict) and not isinstance(value, origin):
        return [f"{name} is {value!r}, not {kind}"]
    if origin is list:
        return [each for item in value for each in mismatches(item, get_args(kind)[0], name)]
    if origin is dict:
        return [each for key, item in value.items() for each in mismatches(item, get_args(kind)[1], f"{name}.{key}")]
    allowed = (int, float) if kind is float else (kind or NoneType,)
    is_right = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
    return [] if is_right else [f"{name} is {value!r}, not {kind}"]


def check_document(document: Any, kind: Any) -> None:
    assert mismatches(json.loads(json.dumps(document)), kind, kind.__name__) == []
