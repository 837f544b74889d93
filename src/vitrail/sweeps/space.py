"""The space of a sweep: fields of a recipe, each with the values that it may take.

    lr=1e-4..1e-2:log      a range of numbers, sampled evenly in the logarithm
    width=96..192:32       a range in steps
    depth=4..8             integers, for a field of integers
    optimizer=adamw,muon   one of these

Types and bounds are the recipe's own: a value that no trial could have is refused before the first trial.
"""

import argparse
import itertools
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.data.augment import Augment
from vitrail.errors import UsageError, did_you_mean
from vitrail.model.config import POSITIONS, ViTConfig
from vitrail.options import check_values, field_types, option_parser
from vitrail.parts import check_part
from vitrail.training.recipe import RECIPE_FIELDS, Recipe
from vitrail.weights.sizes import SIZES
from vitrail.weights.upgrade import AUGMENT_KEYS, FIT_VALUES, RECIPE_KEYS, rename_keys

Scalar = str | int | float | bool | None  # a value in the study, in JSON and in tables
Values = dict[str, Scalar]  # a point of the space: a value for each field

GROUPS: dict[str, type] = {"recipe": Recipe, "augment": Augment, "model": ViTConfig}
SAME_IMAGES = "trials are compared on the same images"
FIXED_FIELDS = {  # fields that all trials share, and why
    **dict.fromkeys(("validation_fraction", "test_fraction", "split_seed", "skip_unreadable"), SAME_IMAGES),
    **dict.fromkeys(("workers", "image_cache_gib"), "it does not change the result"),
}
MAX_VALUES = 10_000  # of a field whose values are counted
SYNTAX_HINT = "write FIELD=LOW..HIGH, FIELD=LOW..HIGH:log, FIELD=LOW..HIGH:STEP or FIELD=A,B,C"


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Scalar, ...]

    def to_json(self) -> list[Scalar]:
        """Returns a JSON document."""
        return list(self.values)

    def list_values(self) -> tuple[Scalar, ...]:
        """Returns the values."""
        return self.values


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    is_integer: bool = False

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON document, as in a TOML file."""
        document: dict[str, Any] = {"from": self.low, "to": self.high}
        if self.log:
            document["log"] = True
        elif self.step is not None:
            document["step"] = self.step
        return document

    def list_values(self) -> tuple[Scalar, ...] | None:
        """Returns the numbers; None if they are continuous or too many."""
        step = self.step or (1 if self.is_integer and not self.log else None)
        if self.is_integer and self.log and self.high - self.low < 16:
            step = 1
        if step is None or (self.high - self.low) / step >= MAX_VALUES:
            return None
        n = math.floor((self.high - self.low) / step + 1e-9) + 1
        numbers = [self.low + i * step for i in range(n)]
        return tuple(int(number) if self.is_integer else round(number, 12) for number in numbers)


Axis = Choice | Range
Space = dict[str, Axis]


def parse_space(vary: Mapping[str, Any]) -> Space:
    """Returns the space from fields and their values: text, a list, or a table with from, to, log, step.

    Raises `UsageError` naming the field and what is wrong.
    """
    if not vary:
        raise UsageError("a sweep needs a field to vary", SYNTAX_HINT)
    return {name: parse_axis(name, values) for name, values in vary.items()}


def parse_vary(arguments: Iterable[str]) -> dict[str, str]:
    """FIELD=VALUES arguments of the command line; raises `UsageError` for anything else, and for a repeated field."""
    vary: dict[str, str] = {}
    for argument in arguments:
        name, equals, values = argument.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals:
            raise UsageError(f"--vary {argument!r} has no values", SYNTAX_HINT)
        if name in vary:
            raise UsageError(f"{name} is varied twice", "name its values once")
        vary[name] = values
    return vary


def load_space(path: str | Path) -> dict[str, Any]:
    """Returns the fields and values of a TOML file, for `parse_space`; raises `UsageError` if it cannot be read."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a space: {error}", 'write lines like lr = "1e-4..1e-2:log"') from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def parse_axis(name: str, values: Any) -> Axis:
    """Returns the values of one field."""
    if name != "size" and name not in RECIPE_FIELDS:
        raise UsageError(f"a recipe has no field {name!r}", did_you_mean(name, [*RECIPE_FIELDS, "size"]))
    if name in FIXED_FIELDS:
        raise UsageError(
            f"{name} cannot be varied: {FIXED_FIELDS[name]}", f"set it for all trials with --{option_name(name)}"
        )
    if isinstance(values, str) and ".." in values:
        values = parse_range_text(name, values)
    if isinstance(values, Mapping):
        return parse_range(name, values)
    if isinstance(values, str):
        values = [word.strip() for word in values.split(",")]
    if not isinstance(values, list | tuple):
        raise UsageError(f"{name} is varied over {values!r}, which is neither a range nor a list", SYNTAX_HINT)
    scalars = tuple(to_scalar(name, value) for value in values)
    if not scalars or "" in scalars:
        raise UsageError(f"{name} has an empty list of values", SYNTAX_HINT)
    if len(set(map(repr, scalars))) < len(scalars):
        raise UsageError(f"{name} names a value twice", "name each once")
    return Choice(scalars)


def parse_range_text(name: str, text: str) -> dict[str, Any]:
    """LOW..HIGH, LOW..HIGH:log or LOW..HIGH:STEP as a table."""
    numbers, colon, suffix = text.partition(":")
    low, _, high = numbers.partition("..")
    try:
        table: dict[str, Any] = {"from": parse_number(low), "to": parse_number(high)}
        if suffix == "log":
            table["log"] = True
        elif colon:
            table["step"] = parse_number(suffix)
    except ValueError:
        raise UsageError(f"{name}={text} is not a range of numbers", SYNTAX_HINT) from None
    return table


def parse_number(text: str) -> float:
    """Returns an int if the text is one, else a float."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def parse_range(name: str, table: Mapping[str, Any]) -> Range:
    """Returns the range in a table with from, to, and log or step."""
    if unknown := set(table) - {"from", "to", "log", "step"}:
        raise UsageError(f"{name}: a range has no {min(unknown)!r}", "it has from, to, and log or step")
    if not {"from", "to"} <= set(table):
        raise UsageError(f"{name}: a range needs from and to", SYNTAX_HINT)
    low, high, step, log = table["from"], table["to"], table.get("step"), table.get("log", False)
    if not isinstance(log, bool):
        raise UsageError(f"{name}: log is {log!r}; it must be true or false")
    numbers = [low, high, *([] if step is None else [step])]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise UsageError(f"{name}: {number!r} is not a number", SYNTAX_HINT)
    hint = field_type(name)
    types = (hint, *getattr(hint, "__args__", ()))
    if int not in types and float not in types:
        raise UsageError(f"{name} has no range: its values are words", f"list them: {name}=A,B")
    is_integer = float not in types
    if is_integer and not all(float(number).is_integer() for number in numbers):
        raise UsageError(f"{name} is a whole number; {low}..{high} is not in whole numbers", SYNTAX_HINT)
    check_bounds(name, low, high, step, log)
    cast = int if is_integer else float
    for end in (low, high):
        check_value(name, cast(end))
    return Range(cast(low), cast(high), log, None if step is None else cast(step), is_integer)


def check_bounds(name: str, low: float, high: float, step: float | None, log: bool) -> None:
    """Raises `UsageError` if ends and step do not make a range."""
    if low >= high:
        raise UsageError(f"{name}: the range {low}..{high} is empty", "write the smaller number first")
    if log and step is not None:
        raise UsageError(f"{name}: a range is logarithmic or in steps, not both", SYNTAX_HINT)
    if log and low <= 0:
        raise UsageError(f"{name}: a logarithmic range starts above 0, not at {low}", "leave out :log, or start higher")
    if step is not None and not 0 < step <= high - low:
        raise UsageError(f"{name}: steps of {step} do not lead from {low} to {high}", SYNTAX_HINT)


def to_scalar(name: str, value: Any) -> Scalar:
    """Returns a value of a field, checked, as the study stores it; (height, width) becomes 32x48."""
    if isinstance(value, tuple | list) and len(value) == 2:
        value = f"{value[0]}x{value[1]}"
    parsed = parse_value(name, value) if isinstance(value, str) else value
    check_value(name, parsed)
    return value if isinstance(parsed, tuple | str) else parsed


def parse_value(name: str, text: str) -> Any:
    """Returns a field's value from its text; raises `UsageError`."""
    if name == "fit":
        text = FIT_VALUES.get(text, text)  # a study of format 1 keeps the old name
    hint = field_type(name)
    if name in ("size", "position"):
        return text
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{name} is {text!r}; it must be true or false")
        return text.lower() == "true"
    try:
        return option_parser(hint)(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise UsageError(f"{name} cannot be {text!r}", f"it is {option_parser(hint).__name__}") from None


def check_value(name: str, value: Any) -> None:
    """Raises `UsageError` if a field cannot have this value."""
    if name == "size":
        if value not in SIZES:
            raise UsageError(f"there is no size {value!r}", did_you_mean(str(value), SIZES))
    elif name == "position":
        check_part(name, "position", str(value), POSITIONS)
    else:
        check_values(GROUPS[RECIPE_FIELDS[name]], {name: value})


def field_type(name: str) -> Any:
    """Returns the type of a field."""
    return str if name == "size" else field_types(GROUPS[RECIPE_FIELDS[name]])[name]


def rename_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a point or a space of a sweep of format 1 with today's names of fields; any other one as it is."""
    return rename_keys(dict(values), RECIPE_KEYS | AUGMENT_KEYS)


def values_to_changes(values: Mapping[str, Scalar]) -> dict[str, Any]:
    """Returns a point as changes of a recipe."""
    return {
        name: parse_value(name, value) if isinstance(value, str) else value
        for name, value in rename_fields(values).items()
    }


def iterate_points(space: Space) -> Iterator[Values] | None:
    """Returns all points of the space, in order; None if they cannot be counted."""
    lists = [axis.list_values() for axis in space.values()]
    if any(values is None for values in lists):
        return None
    return (dict(zip(space, values, strict=True)) for values in itertools.product(*filter(None, lists)))


def count_points(space: Space) -> int | None:
    """Returns the number of points; None if they cannot be counted."""
    lists = [axis.list_values() for axis in space.values()]
    return None if any(values is None for values in lists) else math.prod(len(values or ()) for values in lists)


def space_to_json(space: Space) -> dict[str, Any]:
    """Returns a JSON document, which `parse_space` reads."""
    return {name: axis.to_json() for name, axis in space.items()}


def format_value(value: Any) -> str:
    """Returns a value in a table or a sentence."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def option_name(name: str) -> str:
    """Returns a field as a command-line option, without its dashes."""
    return name.replace("_", "-")
