"""A ViT's config as JSON, for artifacts, cards and recipes."""

from dataclasses import asdict, fields
from typing import Any

from vitrail.errors import UsageError, did_you_mean
from vitrail.model.config import Learned, NoPosition, Position, Rotary, SinCos, ViTConfig
from vitrail.options import check_values

POSITIONS: dict[str, type[Position]] = {"learned": Learned, "sincos": SinCos, "rotary": Rotary, "none": NoPosition}


def config_to_json(config: ViTConfig) -> dict[str, Any]:
    return {**asdict(config), "position": position_to_json(config.position)}


def config_from_json(document: dict[str, Any]) -> ViTConfig:
    """Returns the config of a document; raises `UsageError` for an unknown field or an impossible value."""
    return ViTConfig(**config_values_from_json(document))


def config_values_from_json(document: dict[str, Any]) -> dict[str, Any]:
    """Converts some fields of a config from JSON to Python values; raises `UsageError` as `config_from_json` does."""
    values = dict(document)
    if isinstance(values.get("image_size"), list):  # JSON has no tuples
        values["image_size"] = tuple(values["image_size"])
    if "position" in values:
        values["position"] = position_from_json(values["position"])
    check_values(ViTConfig, values)
    return values


def position_to_json(position: Position) -> dict[str, Any]:
    """Returns the position's fields and its kind, which `asdict` alone would lose."""
    kind = next(name for name, part in POSITIONS.items() if isinstance(position, part))
    return {"kind": kind, **asdict(position)}


def position_from_json(value: str | dict[str, Any] | Position) -> Position:
    """Returns a position from its name, its JSON form with a `kind`, or itself."""
    if not isinstance(value, str | dict):
        return value
    options = {"kind": value} if isinstance(value, str) else dict(value)
    kind = str(options.pop("kind", None))
    if kind not in POSITIONS:
        raise UsageError(f"position {kind!r} is not known", did_you_mean(kind, POSITIONS))
    known = [each.name for each in fields(POSITIONS[kind])]
    for name in options:
        if name not in known:
            raise UsageError(f"position {kind!r} has no option {name!r}", did_you_mean(name, known))
    return POSITIONS[kind](**options)
