"""The types of JSON values."""

from typing import TypeAlias

# A tuple is an array, too: some documents have tuples until a file holds them.
JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | tuple[JsonValue, ...] | JsonObject | None"
JsonObject: TypeAlias = "dict[str, JsonValue]"
