"""Prints the types of the changes of a recipe: python tools/recipe_changes.py [--write].

They are the fields of `Recipe`, `Augment` and `ViTConfig` that a user may set, as TypedDicts, so that editors complete
them and type checkers check them. A test compares the module with the dataclasses. --write writes the module.
"""

import json
import sys
import textwrap
import types
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from vitrail.data.augment import Augment
from vitrail.model.config import ViTConfig
from vitrail.options import field_types
from vitrail.training.recipe import RECIPE_FIELDS, Recipe
from vitrail.weights.sizes import SIZES

FILE = Path(__file__).parent.parent / "src" / "vitrail" / "training" / "recipe_changes.py"
OWNERS = {"recipe": Recipe, "augment": Augment, "model": ViTConfig}
SIZE_HELP = "named model size: sets width, depth, heads and mlp_width"
WIDTH = 120
OWN_KEYWORDS = ("architecture", "loss")  # of `train`, which names them itself
HEAD = '''"""The types of the changes of a recipe. Made by tools/recipe_changes.py: do not edit."""

from typing import Literal, TypedDict
{imports}

class ModelChanges(TypedDict, total=False):
    """The fields of `ViTConfig` that a recipe may set: `Recipe.model`."""

{model}

class TrainChanges(ModelChanges, total=False):
    """The fields of a recipe that `train` takes as keywords besides its own, `architecture` and `loss`."""

{most}

class RecipeChanges(TrainChanges, total=False):
    """The fields of a recipe that its user may set: its own, those of its augmentation and those of its model."""

{rest}'''


def list_changes() -> dict[str, tuple[Any, str, str]]:
    """Returns the type, the help text and the class of every field that a user may set, and of `size`."""
    sizes: Any = Literal[tuple(SIZES)]
    changes: dict[str, tuple[Any, str, str]] = {"size": (sizes, SIZE_HELP, "most")}
    for name, part in RECIPE_FIELDS.items():
        (field,) = (each for each in fields(OWNERS[part]) if each.name == name)
        kind = "model" if part == "model" else "rest" if name in OWN_KEYWORDS else "most"
        changes[name] = field_types(OWNERS[part])[name], field.metadata["help"], kind
    return changes


def list_alternatives(hint: Any) -> list[Any]:
    """Returns the types of a union, nested or not; a type alone otherwise."""
    if get_origin(hint) in (Union, types.UnionType):
        return [each for part in get_args(hint) for each in list_alternatives(part)]
    return [hint]


def write_type(hint: Any) -> str:
    """Returns a type as source text."""
    if hint is types.NoneType:
        return "None"
    if get_origin(hint) is Literal:
        return f"Literal[{', '.join(map(json.dumps, get_args(hint)))}]"
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(map(write_type, get_args(hint)))
    if get_origin(hint):
        return f"{get_origin(hint).__name__}[{', '.join(map(write_type, get_args(hint)))}]"
    return "..." if hint is ... else str(hint.__name__)


def write_field(name: str, hint: Any, text: str) -> Iterator[str]:
    """Yields the lines of a field: its type, and its help text, which editors show."""
    line = f"    {name}: {write_type(hint)}"
    yield line if len(line) <= WIDTH else "\n".join(wrap_union(name, hint))
    yield textwrap.fill(f'"""{text}"""', WIDTH, initial_indent="    ", subsequent_indent="    ")


def wrap_union(name: str, hint: Any) -> Iterator[str]:
    """Yields the lines of a field whose type, a union that begins with literals, is too long for one, as ruff does."""
    first, *others = get_args(hint)
    yield f"    {name}: ("
    yield "        Literal["
    yield from (f"            {json.dumps(value)}," for value in get_args(first))
    yield "        ]"
    yield from (f"        | {write_type(each)}" for each in others)
    yield "    )"


def write_module() -> str:
    """Returns the source text of the module."""
    changes = list_changes()
    classes = {
        each
        for hint, _, _ in changes.values()
        for each in list_alternatives(hint)
        if isinstance(each, type) and each.__module__.startswith("vitrail.")
    }
    imports = "".join(
        f"\nfrom {module} import {', '.join(sorted(each.__name__ for each in classes if each.__module__ == module))}\n"
        for module in sorted({each.__module__ for each in classes})
    )
    blocks = {
        kind: "".join(
            f"{line}\n"
            for name, (hint, text, own_kind) in changes.items()
            if own_kind == kind
            for line in write_field(name, hint, text)
        )
        for kind in ("model", "most", "rest")
    }
    return HEAD.format(imports=imports, **blocks)


if __name__ == "__main__":
    if "--write" in sys.argv:
        FILE.write_text(write_module(), encoding="utf-8")
    else:
        print(write_module(), end="")
