"""What a sweep varies: fields of a recipe, each with the values that it may take.

    lr=1e-4..1e-2:log      from one number to another, evenly in powers
    width=96..192:32       in steps
    depth=4..8             whole numbers for a field of whole numbers
    optimizer=adamw,muon   one of these

Fields, types and bounds are the recipe's own, so that a value that no trial could have is refused before the first.
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
from vitrail.model import ViTConfig
from vitrail.model.config import Position
from vitrail.options import check_values, field_types, option_parser
from vitrail.training.recipe import RECIPE_FIELDS, Recipe
from vitrail.weights.config_json import POSITIONS
from vitrail.weights.sizes import SIZES

Plain = str | int | float | bool | None  # a value as the study, JSON and tables hold it
Values = dict[str, Plain]  # one for each field: a point of the space

KINDS: dict[str, type] = {"recipe": Recipe, "augment": Augment, "model": ViTConfig}
HELD = {  # fields that every trial must share
    **dict.fromkeys(
        ("validation_fraction", "test_fraction", "split_seed"), "trials are compared on the same validation images"
    ),
    **dict.fromkeys(("workers", "image_cache_gib"), "it leaves every bit of the result as it is"),
    "skip_unreadable": "trials are compared on the same images",
}
GRAIN = 10_000  # a field whose numbers can be counted has at most so many values
FORMS = "write FIELD=LOW..HIGH, FIELD=LOW..HIGH:log, FIELD=LOW..HIGH:STEP or FIELD=A,B,C"


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Plain, ...]

    def to_json(self) -> list[Plain]:
        """The values."""
        return list(self.values)

    def counted(self) -> tuple[Plain, ...]:
        """The values."""
        return self.values


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def to_json(self) -> dict[str, Any]:
        """As a file says it."""
        how = {"log": True} if self.log else {"step": self.step} if self.step is not None else {}
        return {"from": self.low, "to": self.high, **how}

    def counted(self) -> tuple[Plain, ...] | None:
        """The numbers where they are few enough to be counted, else None."""
        step = self.step or (1 if self.whole and not self.log else None)
        if self.whole and self.log and self.high - self.low < 16:
            step = 1
        if step is None or (self.high - self.low) / step >= GRAIN:
            return None
        n = math.floor((self.high - self.low) / step + 1e-9) + 1
        numbers = [self.low + i * step for i in range(n)]
        return tuple(int(number) if self.whole else round(number, 12) for number in numbers)


Axis = Choice | Range
Space = dict[str, Axis]


def parse_space(vary: Mapping[str, Any]) -> Space:
    """Field -> what it may be, as text, a list, or a table with from, to, log, step; raises `UsageError`."""
    if not vary:
        raise UsageError("a sweep needs a field to vary", FORMS)
    return {name: axis(name, said) for name, said in vary.items()}


def parse_vary(words: Iterable[str]) -> dict[str, str]:
    """FIELD=VALUES of the command line; raises `UsageError` for anything else, and for a field named twice."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, said = word.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals:
            raise UsageError(f"--vary {word!r} says no values", FORMS)
        if name in found:
            raise UsageError(f"{name} is varied twice", "name its values once")
        found[name] = said
    return found


def load_space(path: str | Path) -> dict[str, Any]:
    """The fields that a TOML file varies; raises `UsageError` where it cannot be read."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no space: {error}", 'write lines like lr = "1e-4..1e-2:log"') from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def axis(name: str, said: Any) -> Axis:
    """What a field may be; raises `UsageError` naming the field and what is wrong."""
    if name != "size" and name not in RECIPE_FIELDS:
        raise UsageError(f"a recipe has no field {name!r}", did_you_mean(name, [*RECIPE_FIELDS, "size"]))
    if name in HELD:
        raise UsageError(f"{name} cannot be varied: {HELD[name]}", f"set it for all trials with --{option_name(name)}")
    if isinstance(said, str) and ".." in said:
        said = range_in_words(name, said)
    if isinstance(said, Mapping):
        return range_of(name, said)
    if isinstance(said, str):
        said = [word.strip() for word in said.split(",")]
    if not isinstance(said, list | tuple):
        raise UsageError(f"{name} is varied over {said!r}, which is neither a range nor a list", FORMS)
    values = tuple(plain(name, value) for value in said)
    if not values or "" in values:
        raise UsageError(f"{name} has an empty list of values", FORMS)
    if len(set(map(repr, values))) < len(values):
        raise UsageError(f"{name} names a value twice", "name each once")
    return Choice(values)


def range_in_words(name: str, said: str) -> dict[str, Any]:
    """LOW..HIGH, LOW..HIGH:log, LOW..HIGH:STEP as a table."""
    numbers, colon, how = said.partition(":")
    low, _, high = numbers.partition("..")
    try:
        table: dict[str, Any] = {"from": number(low), "to": number(high)}
        if how == "log":
            table["log"] = True
        elif colon:
            table["step"] = number(how)
    except ValueError:
        raise UsageError(f"{name}={said} is not a range of numbers", FORMS) from None
    return table


def number(word: str) -> float:
    """A whole number as one, any other as a float."""
    try:
        return int(word)
    except ValueError:
        return float(word)


def range_of(name: str, table: Mapping[str, Any]) -> Range:
    """The range in a table with from, to, and log or step; raises `UsageError`."""
    if strange := set(table) - {"from", "to", "log", "step"}:
        raise UsageError(f"{name}: a range has no {min(strange)!r}", "it has from, to, and log or step")
    if not {"from", "to"} <= set(table):
        raise UsageError(f"{name}: a range needs from and to", FORMS)
    low, high, step, log = table["from"], table["to"], table.get("step"), table.get("log", False)
    if not isinstance(log, bool):
        raise UsageError(f"{name}: log is {log!r}; it must be true or false")
    for value in (low, high, *([] if step is None else [step])):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError(f"{name}: {value!r} is not a number", FORMS)
    hint = hint_of(name)
    kinds = (hint, *getattr(hint, "__args__", ()))
    if int not in kinds and float not in kinds:
        raise UsageError(f"{name} has no range: its values are words", f"list them: {name}=A,B")
    whole = float not in kinds
    if whole and not all(float(each).is_integer() for each in (low, high, step or 0)):
        raise UsageError(f"{name} is a whole number; {low}..{high} is not in whole numbers", FORMS)
    if low >= high:
        raise UsageError(f"{name}: the range {low}..{high} is empty", "write the smaller number first")
    if log and step is not None:
        raise UsageError(f"{name}: a range goes in powers or in steps, not both", FORMS)
    if log and low <= 0:
        raise UsageError(f"{name}: a range in powers starts above 0, not at {low}", "leave out :log, or start higher")
    if step is not None and not 0 < step <= high - low:
        raise UsageError(f"{name}: steps of {step} do not lead from {low} to {high}", FORMS)
    cast = int if whole else float
    for end in (low, high):
        check(name, cast(end))
    return Range(cast(low), cast(high), log, None if step is None else cast(step), whole)


def plain(name: str, said: Any) -> Plain:
    """A value of a field, checked, as the study holds it: from its word or itself; (height, width) is 32x48."""
    if isinstance(said, tuple | list) and len(said) == 2:
        said = f"{said[0]}x{said[1]}"
    value = read(name, said) if isinstance(said, str) else said
    check(name, value)
    return said if isinstance(value, tuple) else value


def read(name: str, word: str) -> Any:
    """A field's value in a word; raises `UsageError`."""
    hint = hint_of(name)
    if name == "size" or hint == Position:
        return word
    if hint is bool:
        if word.lower() not in ("true", "false"):
            raise UsageError(f"{name} is {word!r}; it must be true or false")
        return word.lower() == "true"
    try:
        return option_parser(hint)(word)
    except (ValueError, argparse.ArgumentTypeError):
        raise UsageError(f"{name} cannot be {word!r}", f"it is {option_parser(hint).__name__}") from None


def check(name: str, value: Any) -> None:
    """Raises `UsageError` where a field cannot have this value."""
    if name == "size":
        if value not in SIZES:
            raise UsageError(f"there is no size {value!r}", did_you_mean(str(value), SIZES))
    elif hint_of(name) == Position:
        if value not in POSITIONS:
            raise UsageError(f"position {value!r} is not known", did_you_mean(str(value), POSITIONS))
    else:
        check_values(KINDS[RECIPE_FIELDS[name]], {name: value})


def hint_of(name: str) -> Any:
    """The type of a field."""
    return str if name == "size" else field_types(KINDS[RECIPE_FIELDS[name]])[name]


def changes(values: Mapping[str, Plain]) -> dict[str, Any]:
    """A point of the space as fields of a recipe."""
    return {name: read(name, value) if isinstance(value, str) else value for name, value in values.items()}


def iterate_points(space: Space) -> Iterator[Values] | None:
    """Every point of a space that can be counted, in order; None for any other."""
    lists = [each.counted() for each in space.values()]
    if any(values is None for values in lists):
        return None
    return (dict(zip(space, values, strict=True)) for values in itertools.product(*filter(None, lists)))


def count_points(space: Space) -> int | None:
    """How many points a space has; None where they cannot be counted."""
    lists = [each.counted() for each in space.values()]
    return None if any(values is None for values in lists) else math.prod(len(values or ()) for values in lists)


def space_to_json(space: Space) -> dict[str, Any]:
    """What `space_from` reads again."""
    return {name: each.to_json() for name, each in space.items()}


def format_value(value: Any) -> str:
    """A value in a table or a sentence."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def option_name(name: str) -> str:
    """A field as an option."""
    return name.replace("_", "-")
