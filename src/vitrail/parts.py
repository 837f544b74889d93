"""Parts by name: what a config or a recipe writes as `NAME`, or `NAME:ARGUMENT=VALUE:ARGUMENT=VALUE`.

`PARTS` lists the parts that plugins have registered (`registry.py`), and the module of each. Built-in parts are only in
the tables of their packages.
"""

import functools
import hashlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_args

from vitrail.documents import PartDocument
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.plugins import load_entry_points, loaded_plugins

Kind = Literal[
    "pool", "position", "mlp", "head", "model", "loss", "optimizer", "schedule", "augmentation", "recipe",
    "explanation", "metric",
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(Kind)
NAME = re.compile(r"[A-Za-z_<][\w.<>+-]*")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Part:
    """A part of a plugin."""

    kind: str
    name: str
    value: Any  # what was registered
    module: str  # that registered it
    is_unnamed: bool = False  # a callable that was passed to `train`, not registered by a module

    def to_json(self) -> PartDocument:
        """Returns the description of the part in files."""
        document: PartDocument = {"kind": self.kind, "name": self.name, "module": self.module}
        if self.is_unnamed:
            document["callable"] = True
        return document


PARTS: dict[tuple[str, str], Part] = {}
_described: set[tuple[str, str]] = set()  # parts that a config may name though they are not registered


@lru_cache
def split_part(text: str) -> tuple[str, Mapping[str, Any]]:
    """Returns the name and the arguments of a part; raises `UsageError` for text that is neither.

    A value is a JSON number, `true`, `false` or `none`; anything else is text.
    """
    name, *pairs = text.split(":")
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier() or key in arguments:
            raise UsageError(f"{text!r} is not the name of a part", "write NAME:ARGUMENT=VALUE:ARGUMENT=VALUE")
        arguments[key] = parse_argument(value)
    return name, arguments


def parse_argument(text: str) -> Any:
    """Returns the number, truth value, None or text that an argument is."""
    if text.lower() == "none":
        return None
    try:
        value = json.loads(text.lower())
    except ValueError:
        return text
    return value if isinstance(value, int | float) else text


def part_name(text: str) -> str:
    """Returns the name of a part without its arguments."""
    return text.partition(":")[0]


def make_part(table: Mapping[str, Callable[..., Made]], text: str, *inputs: Any) -> Made:
    """Calls the table's row for a part with these inputs and the part's arguments."""
    name, arguments = split_part(text)
    check_arguments(table[name], text, len(inputs))
    return table[name](*inputs, **arguments)


def check_arguments(part: Callable[..., Any], text: str, inputs: int) -> None:
    """Raises `UsageError` if a part lacks an argument that is written after its name, or needs one that is not."""
    name, arguments = split_part(text)
    parameters = signature_of(part)[inputs:]
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
    named = {each.name: each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    for argument in arguments:
        if argument not in named and not takes_all:
            hint = did_you_mean(argument, named) or "write its name alone"
            raise UsageError(f"{name} has no argument {argument!r}", hint)
    for argument, parameter in named.items():
        if parameter.default is parameter.empty and argument not in arguments:
            raise UsageError(f"{name} needs the argument {argument!r}", f"write {name}:{argument}=VALUE")


def signature_of(part: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    """Returns the parameters of a callable; none for a function of C that does not tell."""
    try:
        return tuple(inspect.signature(part).parameters.values())
    except ValueError:
        return ()


def add_callable(kind: Kind, value: Callable[..., object]) -> str:
    """Adds a callable that was passed instead of a name to `PARTS`, under its qualified name, which it returns."""
    function = value.func if isinstance(value, functools.partial) else value
    named = function if hasattr(function, "__qualname__") else type(function)
    name = f"{named.__module__}.{named.__qualname__}"
    PARTS[kind, name] = Part(kind, name, value, named.__module__, is_unnamed=True)
    return name


def find_part(kind: str, name: str) -> Part | None:
    """Returns the registered part of this name, if need be after the installed plugins are imported."""
    if (kind, name) not in PARTS:
        load_entry_points()
    return PARTS.get((kind, name))


def registered_names(kind: str) -> list[str]:
    """Returns the names of the registered parts of a kind."""
    return [name for each, name in PARTS if each == kind]


def check_part(field: str, kind: str, text: str, built_in: Iterable[str]) -> None:
    """Raises `UsageError` if a field names neither a built-in part nor a registered one."""
    name, known = part_name(text), list(built_in)
    if name not in known and (kind, name) not in _described and find_part(kind, name) is None:
        near = did_you_mean(name, [*known, *registered_names(kind)])
        own = f'register your own: vitrail.register("{kind}", "{name}", ...), which --plugin MODULE imports'
        raise UsageError(f"{field} {name!r} is not known", join_hints(near, own))
    split_part(text)


def join_hints(near: str | None, own: str) -> str:
    """Returns a hint on near names, and one on names of one's own, as one."""
    if near is None:
        return own
    return f"{near} Or {own}" if near.endswith("?") else f"{near}; or {own}"


@contextmanager
def allow_described(documents: Any) -> Iterator[None]:
    """Within, a config may name unregistered parts that a file describes, to read the file without its model."""
    names = {(each["kind"], each["name"]) for each in _read_documents(documents)}
    _described.update(names)
    try:
        yield
    finally:
        _described.difference_update(names)


def needed_parts(choices: Mapping[str, str]) -> list[PartDocument]:
    """Returns the registered parts among these (kind -> part), as files name them; built-in parts are left out."""
    parts = [PARTS.get((kind, part_name(text))) for kind, text in choices.items()]
    return [part.to_json() for part in parts if part is not None]


def require_parts(documents: Any, needed_by: str) -> None:
    """Raises `VitrailError` if a part that a file names is not registered. Imports nothing that a file names."""
    for each in _read_documents(documents):
        kind, name, module = each["kind"], each["name"], each["module"]
        if find_part(kind, name) is not None:
            continue
        if "callable" in each:
            keyword = {"augmentation": "augment"}.get(kind, kind)
            hint = f"pass it again: vitrail.train(..., {keyword}=...)"
            raise VitrailError(f"{needed_by} needs the {kind} {name!r}, a callable of Python", hint)
        sentence = f"{needed_by} needs the {kind} {name!r}, which {describe_module(module)} registers"
        if module == "__main__":
            raise VitrailError(sentence, f"call vitrail.register({kind!r}, {name!r}, ...) first")
        raise VitrailError(sentence, f"add --plugin {module}, or import {module} in Python first")


def _read_documents(documents: Any) -> list[dict[str, str]]:
    """Returns the parts that a file describes; other entries are left out."""
    keys = {"kind", "name", "module"}
    rows = documents if isinstance(documents, list) else []
    return [
        {key: str(value) for key, value in row.items()} for row in rows if isinstance(row, dict) and keys <= row.keys()
    ]


def hash_code(documents: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the SHA-256 of the source of each of these parts: another code computes other outputs."""
    hashes = []
    for each in documents:
        part = PARTS[each["kind"], each["name"]].value
        try:
            source = inspect.getsource(part if inspect.isroutine(part) or isinstance(part, type) else type(part))
        except (OSError, TypeError):  # defined in a console
            source = ""
        hashes.append(hashlib.sha256(source.encode()).hexdigest())
    return hashes


def describe_module(module: str) -> str:
    """Returns the words for a module in a message."""
    return "a script" if module == "__main__" else f"the module {module}"


def plugins_for_processes() -> list[str]:
    """Returns what `load_plugins` must import in another process, so that it has the parts of this one."""
    plugins = loaded_plugins()
    modules = {part.module for part in PARTS.values() if not part.is_unnamed}
    files = {getattr(sys.modules.get(plugin), "__file__", plugin) for plugin in plugins}
    for module in sorted(modules):
        loaded = sys.modules.get(module)
        is_importable = getattr(loaded, "__spec__", None) is not None and module != "__main__"
        if is_importable and getattr(loaded, "__file__", None) not in files:
            plugins.append(module)
    return plugins
