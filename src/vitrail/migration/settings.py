"""The settings of a training in another library, and what becomes of each of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrail.errors import UsageError, first_line
from vitrail.training.recipe import Recipe
from vitrail.training.recipes import RECIPES
from vitrail.weights.cards import Card, list_untagged, load_cards

OFF: tuple[Any, ...] = (None, False, 0, "", "none", [], {})  # values of a setting that is not used


@dataclass(frozen=True)
class Missing:
    """A setting that a recipe cannot have."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.value}: {self.reason}"


@dataclass
class Settings:
    """The settings by name. Reading one marks it as known; `changes` are fields of the recipe."""

    values: Mapping[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    model: str | None = None  # the weights that training started from, as vitrail names them

    def read(self, name: str, default: Any = None) -> Any:
        """Returns a setting, or the default if it is absent or None."""
        self.known.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def number(self, name: str, default: float) -> float:
        """Returns a setting that must be a number; raises `UsageError` if it is not."""
        value = self.read(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"the setting {name} is {value!r}, and must be a number")
        return value

    def take(self, name: str, field: str) -> None:
        """Sets a field of the recipe to the value of a setting, if it has one."""
        value = self.read(name)
        if value is not None:
            self.changes[field] = value

    def miss(self, name: str, reason: str) -> None:
        """Notes that the recipe cannot have a setting."""
        self.known.add(name)
        self.missing.append(Missing(name, self.values.get(name), reason))

    def set_warmup(self, name: str, warmup: float, epochs: float) -> None:
        """Sets the warmup from epochs."""
        if warmup < epochs:
            self.changes["warmup_fraction"] = warmup / epochs
        else:
            self.miss(name, "the warmup would be longer than the training")

    def set_model(self, card: Card | None, name: Any) -> None:
        """Sets the fields of the model that a card describes; without one, those of the recipe `small`."""
        if card is None:
            self.miss("model", f"vitrail has no ViT of this name; the recipe has the one of recipe small, not {name}")
            self.changes |= RECIPES["small"].model
            return
        self.known.add("model")
        config = card.build_config()
        names = {*card.config, "width", "depth", "heads", "mlp_width", "patch", "image_size"}
        names -= {"classes", "channels", "position"}
        self.changes = {**{each: getattr(config, each) for each in sorted(names)}, **self.changes}


def find_architecture(prefix: str, name: str) -> tuple[Card | None, list[str]]:
    """Returns a card with the architecture of this name, and the names of all its checkpoints."""
    full = f"{prefix}/{name}"
    checkpoints = [full] if full in load_cards() else sorted(list_untagged(full))
    return (load_cards()[checkpoints[0]] if checkpoints else None), checkpoints


@dataclass(frozen=True)
class Library:
    """How the settings of a library are converted."""

    name: str
    markers: frozenset[str]  # names of settings that only this library has, or that it always has
    convert: Callable[[Settings, int | None], None]  # with the number of processes, if it is known
    ignored: frozenset[str]  # settings that do not change the weights: paths, logs, speed
    neutral: Mapping[str, Any]  # values of settings that change nothing, beside those in `OFF`


@dataclass(frozen=True)
class ImportedRecipe:
    """A recipe from another library."""

    recipe: Recipe
    library: str
    model: str | None  # weights to start from, as vitrail names them
    missing: list[Missing]  # settings that the recipe does not have
    ignored: list[str]  # settings that do not change the weights
    off: list[str]  # settings that were not used


def convert_settings(
    values: Mapping[str, Any], library: Library, name: str, processes: int | None = None
) -> ImportedRecipe:
    """Returns the recipe; every setting is converted, missing, ignored or off. Raises `UsageError` for a bad value."""
    settings = Settings(values)
    try:
        library.convert(settings, processes)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UsageError(f"settings of {library.name} have a value of another kind: {first_line(error)}") from None
    rest = [each for each in values if each not in settings.known]
    ignored = [each for each in rest if each in library.ignored]
    off = [each for each in rest if each not in ignored and is_off(values[each], library.neutral.get(each))]
    for each in rest:
        if each not in ignored and each not in off:
            settings.miss(each, "a recipe has nothing like it")
    recipe = Recipe(name=name, description=f"from {library.name}").with_changes(**settings.changes)
    return ImportedRecipe(recipe, library.name, settings.model, settings.missing, ignored, off)


def is_off(value: Any, neutral: Any) -> bool:
    return value in OFF or (neutral is not None and value == neutral)


def find_library(values: Iterable[str], libraries: Iterable[Library]) -> Library | None:
    """Returns the library whose marks the settings have; None if none has all its marks."""
    names = set(values)
    return next((each for each in libraries if each.markers <= names), None)
