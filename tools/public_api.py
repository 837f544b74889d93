"""Prints the signature of everything public: python tools/public_api.py [--write].

tests/public_api.txt holds the output, and a test compares it: a change of a public signature is seen and meant.
--write writes the file.
"""

import ast
import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import is_typeddict

ROOT = Path(__file__).parent.parent
FILE = ROOT / "tests" / "public_api.txt"
OWN = {  # the public names of modules other than `vitrail`, which has `__all__`
    "vitrail.sklearn": ("VitrailClassifier",),
    "vitrail.data.augment": ("Augment", "build_augmentation"),
    "vitrail.data.loader": ("TrainLoader",),
    "vitrail.data.open": ("open_data",),
    "vitrail.runs.start": ("random_vit",),
    "vitrail.training.data_defaults": ("complete_recipe", "resolve_model"),
    "vitrail.training.optimizers": ("build_optimizers",),
    "vitrail.training.recipes": ("find_recipe",),
    "vitrail.training.schedules": ("lr_factor",),
}
MODULES = ("vitrail", *OWN)


def public_names() -> list[tuple[str, object]]:
    """Returns every public name with its module, and what it names."""
    names = []
    for name in MODULES:
        module = import_module(name)
        names += [(f"{name}.{each}", getattr(module, each)) for each in sorted(OWN.get(name, ()) or module.__all__)]
    return names


def describe(name: str, value: object) -> Iterator[str]:
    """Yields a line for a function, several for a class: its bases, fields, methods and properties."""
    if not inspect.isclass(value):
        definitions = definitions_of(value)
        overloads = [each for each in definitions if is_overload(each)]
        for each in overloads or definitions:
            yield f"{name}{signature(each)}"
        return
    yield f"class {name}({', '.join(base.__name__ for base in value.__bases__ if base is not object)})"
    members: dict[str, list[str]] = {}
    for owner in reversed(list_bases(value)):
        if owner.__module__.split(".")[0] == "vitrail":
            for member, lines in describe_members(owner):
                members[member] = lines
    for member in sorted(members):
        yield from (f"    {line}" for line in members[member])


def list_bases(value: type) -> tuple[type, ...]:
    """Returns a class and its bases; those of a `TypedDict` are not in its `__mro__`, so its source names them."""
    if not is_typeddict(value):
        return value.__mro__
    (definition,) = definitions_of(value)
    bases = (getattr(import_module(value.__module__), base.id) for base in definition.bases)
    return (value, *(each for base in bases if is_typeddict(base) for each in list_bases(base)))


def describe_members(owner: type) -> Iterator[tuple[str, list[str]]]:
    """Yields the public members that a class itself defines, each with its lines."""
    (definition,) = definitions_of(owner)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_public(node.target.id):
            default = " = ..." if node.value is not None else ""
            yield node.target.id, [f"{node.target.id}: {ast.unparse(node.annotation)}{default}"]
    functions: dict[str, list[ast.FunctionDef]] = {}
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and (is_public(node.name) or node.name in ("__init__", "__call__")):
            functions.setdefault(node.name, []).append(node)
    for name, nodes in functions.items():
        if "property" in {ast.unparse(each).split(".")[-1].removeprefix("cached_") for each in nodes[0].decorator_list}:
            yield name, [f"{name}: {ast.unparse(nodes[0].returns) if nodes[0].returns else '?'}"]
        else:
            yield name, [f"{name}{signature(each)}" for each in [n for n in nodes if is_overload(n)] or nodes]


def definitions_of(value: object) -> list[ast.FunctionDef | ast.ClassDef]:
    """Returns the definitions of a class or function in the source of its module, with the overloads."""
    tree = ast.parse(Path(inspect.getsourcefile(inspect.unwrap(value))).read_text(encoding="utf-8"))
    kinds = ast.ClassDef | ast.FunctionDef
    return [node for node in tree.body if isinstance(node, kinds) and node.name == value.__name__]


def signature(node: ast.FunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){returns}"


def is_overload(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(each) == "overload" for each in node.decorator_list)


def is_public(name: str) -> bool:
    return not name.startswith("_")


def describe_all() -> str:
    return "".join(f"{line}\n" for name, value in public_names() for line in describe(name, value))


if __name__ == "__main__":
    if "--write" in sys.argv:
        FILE.write_text(describe_all(), encoding="utf-8")
    else:
        print(describe_all(), end="")
