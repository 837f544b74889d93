"""`vitrail.register`: adds a part to the table of its kind, after a check. docs/plugins.md describes every kind."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, TypeVar, overload

from vitrail.errors import UsageError, did_you_mean
from vitrail.parts import KINDS, NAME, PARTS, Kind, Part, describe_module
from vitrail.plugins import importing_plugin

P = TypeVar("P")
METHOD_OPTIONS = ("layer", "head", "query")
BUILT_IN_POLICIES = ("none", "randaugment", "trivialaugment")
OLD_METHODS = ("balanced", "generic", "gradient", "integrated", "lens")  # of METHOD_ALIASES


@overload
def register(kind: Kind, name: str) -> Callable[[P], P]: ...
@overload
def register(kind: Kind, name: str, part: P) -> P: ...
def register(kind: Kind, name: str, part: Any = None) -> Any:
    """Adds a part under a name, which configs, recipes and the command line then accept; returns the part.

    Without `part` it is a decorator. The same part may be registered again. Raises `UsageError` for an unknown kind, a
    name that another part has, and a part that cannot be called as its kind is.
    """
    module = importing_plugin() or sys._getframe(1).f_globals.get("__name__", "__main__")
    if part is None:
        return lambda decorated: add_part(kind, name, decorated, module)
    return add_part(kind, name, part, module)


def add_part(kind: str, name: str, value: Any, module: str) -> Any:
    """Checks a part and adds it to `PARTS` and to the table of its kind; returns it."""
    if kind not in KINDS:
        raise UsageError(f"there is no kind of part {kind!r}", did_you_mean(kind, KINDS))
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be the name of a part", "use letters, digits and . _ + -")
    rule = RULES[kind]
    table, before = rule.table, PARTS.get((kind, name))
    if (name in table or name in rule.reserved) and (before is None or not is_same_part(before.value, value)):
        owner = "vitrail itself" if before is None else describe_module(before.module)
        raise UsageError(f"the {kind} {name!r} exists already: {owner} registered it", "choose another name")
    rule.check(kind, name, value)
    rule.add(table, name, value)
    PARTS[kind, name] = Part(kind, name, value, module)
    return value


def is_same_part(before: Any, now: Any) -> bool:
    """Returns whether two parts are one, or one of a module that was imported again."""
    if before is now or (type(before) is type(now) and before == now):
        return True
    names = [(getattr(each, "__module__", None), getattr(each, "__qualname__", None)) for each in (before, now)]
    return names[0] == names[1] and names[0][1] is not None


@dataclass(frozen=True)
class Rule:
    """A kind of part: its table, how a part is checked and how it is added."""

    module: str
    table_name: str
    check: Callable[[str, str, Any], None]  # of kind, name and part
    add: Callable[[Any, str, Any], None]  # to the table, by name
    reserved: tuple[str, ...] = ()  # names that are not in the table, but have a meaning

    @property
    def table(self) -> Any:
        """The table; its module is imported when the first part of the kind is registered."""
        return getattr(import_module(self.module), self.table_name)


def check_call(inputs: tuple[str, ...], kind: str, name: str, part: Any, **keywords: Any) -> None:
    """Raises `UsageError` if a part cannot be called with these inputs."""
    call = f"part({', '.join([*inputs, *(f'{keyword}=...' for keyword in keywords)])})"
    if not callable(part):
        raise UsageError(f"the {kind} {name!r} is {describe(part)}, which cannot be called", f"it is called as {call}")
    try:
        signature = inspect.signature(part)
        (signature.bind if inputs else signature.bind_partial)(*inputs, **keywords)
    except TypeError as error:
        raise UsageError(f"the {kind} {name!r} cannot be called as {call}: {error}", "see docs/plugins.md") from None
    except ValueError:  # some functions of C have no signature
        return


def check_position(kind: str, name: str, part: Any) -> None:
    """Raises `UsageError` unless a position has the methods of `PositionEmbedding`."""
    check_call(("config",), kind, name, part)
    if isinstance(part, type) and (missing := [each for each in ("add", "rotation") if not hasattr(part, each)]):
        raise UsageError(
            f"the position {name!r} has no method {missing[0]}",
            "derive it from vitrail.model.position.PositionEmbedding",
        )


def check_optimizer(kind: str, name: str, part: Any) -> None:
    """Raises `UsageError` unless a part is called as the optimizers of torch are."""
    check_call(("parameters",), kind, name, part, lr=1.0)


def check_schedule(kind: str, name: str, part: Any) -> None:
    """Raises `UsageError` unless a schedule returns numbers of at least 0 from 0 to 1."""
    check_call(("progress",), kind, name, part)
    for progress in (0.0, 0.5, 1.0):
        factor = part(progress)
        if not isinstance(factor, int | float) or not 0 <= factor < float("inf"):
            raise UsageError(
                f"the schedule {name!r} returns {factor!r} at progress {progress}",
                "it must return a fraction of the peak learning rate, at least 0",
            )


def check_recipe(kind: str, name: str, part: Any) -> None:
    """Raises `UsageError` for anything but a recipe."""
    from vitrail.training.recipe import Recipe

    if not isinstance(part, Recipe):
        raise UsageError(f"the recipe {name!r} is {describe(part)}", "give a vitrail.training.recipe.Recipe")


def check_method(kind: str, name: str, part: Any) -> None:
    """Raises `UsageError` for anything but a `Method`, or a function of `TokenInputs`."""
    from vitrail.explanation.methods import Method

    check_call(("inputs",), kind, name, part.run if isinstance(part, Method) else part)


def describe(part: Any) -> str:
    """Returns the words for a value in a message."""
    return f"a {type(part).__name__}"


def add_row(table: dict[str, Any], name: str, part: Any) -> None:
    """Adds a part as it is."""
    table[name] = part


def add_pool(table: dict[str, Any], name: str, part: Any) -> None:
    """Adds a pool with the number of class tokens that it reads, and of vectors that it concatenates."""
    from vitrail.model.config import CLASS_TOKENS, POOLED_VECTORS

    table[name] = part
    CLASS_TOKENS[name] = getattr(part, "class_tokens", 0)
    POOLED_VECTORS[name] = getattr(part, "vectors", 1)


def add_optimizer(table: dict[str, Any], name: str, part: Any) -> None:
    """Adds a class of optimizers."""
    from vitrail.training.optimizers import OptimizerKind, build_from_class

    state_per_weight, needs_matrices = getattr(part, "state_per_weight", 2), getattr(part, "needs_full_matrices", False)
    table[name] = OptimizerKind(partial(build_from_class, part), state_per_weight, needs_matrices)


def add_recipe(table: Any, name: str, part: Any) -> None:
    """Adds a recipe under its name."""
    table.add(replace(part, name=name))


def add_method(table: dict[str, Any], name: str, part: Any) -> None:
    """Adds a method; the options of a function are its parameters of these names."""
    from vitrail.explanation.methods import Method

    if not isinstance(part, Method):
        text = (inspect.getdoc(part) or f"the method {name}").splitlines()[0].rstrip(".")
        options = frozenset(METHOD_OPTIONS) & set(inspect.signature(part).parameters)
        part = Method(name, text, part, "not known", options=frozenset(options))
    table[name] = replace(part, name=name)


RULES: dict[str, Rule] = {
    "pool": Rule("vitrail.model.pool", "POOLS", partial(check_call, ("config",)), add_pool),
    "position": Rule("vitrail.model.position", "EMBEDDINGS", check_position, add_row),
    "mlp": Rule("vitrail.model.mlp", "MLPS", partial(check_call, ("config",)), add_row),
    "head": Rule("vitrail.model.vit", "HEADS", partial(check_call, ("config",)), add_row),
    "model": Rule("vitrail.weights.builders", "MODELS", partial(check_call, ("config",)), add_row, ("vit",)),
    "loss": Rule("vitrail.training.losses", "LOSSES", partial(check_call, ("context",)), add_row),
    "optimizer": Rule("vitrail.training.optimizers", "OPTIMIZERS", check_optimizer, add_optimizer),
    "schedule": Rule("vitrail.training.schedules", "SCHEDULES", check_schedule, add_row),
    "augmentation": Rule("vitrail.data.augment", "POLICIES", partial(check_call, ()), add_row, BUILT_IN_POLICIES),
    "recipe": Rule("vitrail.training.recipes", "RECIPES", check_recipe, add_recipe),
    "explanation": Rule("vitrail.explanation.methods", "METHODS", check_method, add_method, OLD_METHODS),
    "metric": Rule("vitrail.evaluation.metrics", "METRICS", partial(check_call, ("outcome",)), add_row),
}
