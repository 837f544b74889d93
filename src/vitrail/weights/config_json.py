"""A ViT's config as JSON, for artifacts, cards and recipes."""

from dataclasses import asdict, fields
from typing import Any

from vitrail.documents import PartDocument
from vitrail.errors import UsageError, did_you_mean
from vitrail.model.config import POSITIONS, Position, ViTConfig, position_kind
from vitrail.options import check_values
from vitrail.parts import check_part, needed_parts


def config_to_json(config: ViTConfig) -> dict[str, Any]:
    return {**asdict(config), "position": position_to_json(config.position)}


def model_parts(config: ViTConfig) -> list[PartDocument]:
    """Returns the parts of plugins that a model has, as files name them."""
    choices = {"pool": config.pool, "position": position_kind(config.position), "mlp": config.mlp, "head": config.head}
    return needed_parts(choices)


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


def position_to_json(position: Position | str) -> dict[str, Any]:
    """Returns the position's fields and its kind, which `asdict` alone would lose."""
    return {"kind": position_kind(position), **({} if isinstance(position, str) else asdict(position))}


def position_from_json(value: str | dict[str, Any] | Position) -> Position | str:
    """Returns a position from its name, its JSON form with a `kind`, or itself; one of a plugin stays a name."""
    if not isinstance(value, str | dict):
        return value
    options = {"kind": value} if isinstance(value, str) else dict(value)
    kind = str(options.pop("kind", None))
    if kind not in POSITIONS:
        check_part("position", "position", kind, POSITIONS)
        if options:
            raise UsageError(
                f"position {kind!r} has no option {next(iter(options))!r}", "write it as NAME:OPTION=VALUE"
            )
        return kind
    known = [each.name for each in fields(POSITIONS[kind])]
    for name in options:
        if name not in known:
            raise UsageError(f"position {kind!r} has no option {name!r}", did_you_mean(name, known))
    return POSITIONS[kind](**options)
