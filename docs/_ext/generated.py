"""Text of pages that the package's data make: commands, recipes, cards, documents, the Python interface."""

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from annotated_source import annotate, list_files

import vitrail
from vitrail.cli.field_options import format_default
from vitrail.cli.main import VERBS, make_parser
from vitrail.data.augment import Augment
from vitrail.model.config import ViTConfig
from vitrail.training.recipe import Recipe
from vitrail.training.recipes import RECIPES
from vitrail.weights.cards import load_cards

SPECIAL = str.maketrans({each: f"\\{each}" for each in "\\`*_{}[]<>#|$~"})
FIELDS_OF = {"Training": Recipe, "Augmentation": Augment, "Model": ViTConfig}


def escape(text: object) -> str:
    """Returns a text that Markdown shows as it is."""
    return " ".join(str(text).split()).translate(SPECIAL)


def code(text: object) -> str:
    return f"`{' '.join(str(text).split())}`".replace("|", "\\|")


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table; the cells are Markdown already."""
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def commands() -> str:
    return "\n".join(command(verb) for verb in VERBS)


def command(verb: str) -> str:
    """Returns the section of a verb: its description, and its options by group."""
    module = importlib.import_module(f"vitrail.cli.{verb}")
    parser = make_parser(verb, module)
    parser.complete_help()
    paragraphs = [escape(paragraph) for paragraph in (module.__doc__ or "").split("\n\n")]
    parts = [f"## {verb}\n", "\n\n".join(paragraphs) + "\n"]
    for group in parser._action_groups:
        formatter = parser._get_formatter()
        rows = []
        for action in group._group_actions:
            name = formatter._format_action_invocation(action)
            text = formatter._expand_help(action) if action.help else ""
            rows.append([code(name), escape(text)])
        if rows:
            parts.append(f"**{escape(group.title)}**\n\n{table(['argument', 'meaning'], rows)}")
    return "\n".join(parts)


def recipes() -> str:
    """Returns a section for each recipe: its description, and the fields that differ from the defaults."""
    parts = []
    for name, recipe in RECIPES.items():
        rows = []
        for part in (recipe, recipe.augment):
            for field in dataclasses.fields(part):
                value = getattr(part, field.name)
                if "help" in field.metadata and value != field.default:
                    rows.append([code(field.name), code(format_default(value)), escape(field.metadata["help"])])
        help_of = {field.name: field.metadata["help"] for field in dataclasses.fields(ViTConfig)}
        for key, value in recipe.to_json()["model"].items():
            shown = value["kind"] if isinstance(value, dict) else format_default(value)
            rows.append([code(key), code(shown), escape(help_of[key])])
        parts.append(f"## {name}\n\n{escape(recipe.description)}\n\n{table(['field', 'value', 'meaning'], rows)}")
    return "\n".join(parts)


def recipe_fields() -> str:
    """Returns a table of all fields for training, augmentation and model, with their defaults."""
    parts = []
    for title, kind in FIELDS_OF.items():
        rows = [
            [code(field.name), code(format_default(field.default)), escape(field.metadata["help"])]
            for field in dataclasses.fields(kind)
            if "help" in field.metadata
        ]
        parts.append(f"### {title}\n\n{table(['field', 'default', 'meaning'], rows)}")
    return "\n".join(parts)


def cards() -> str:
    """Returns a table of all cards for each library that the checkpoints come from."""
    by_library: dict[str, list[list[str]]] = {}
    for name, card in load_cards().items():
        config = card.build_config()
        accuracy = f"{card.accuracy['top1']:.1f}%" if "top1" in card.accuracy else "-"
        size = f"{config.width} x {config.depth}, patch {config.patch}, {config.image_size} px"
        row = [code(name), size, escape(card.labels or "none"), accuracy, escape(card.license)]
        by_library.setdefault(name.split("/")[0], []).append(row)
    header = ["card", "width x depth", "classes", "top-1 on ImageNet, as published", "license"]
    return "\n".join(f"## {escape(library)}\n\n{table(header, rows)}" for library, rows in by_library.items())


def documents() -> str:
    """Returns a table of keys for each JSON document that vitrail returns or writes."""
    names = sorted(path.stem for path in Path(vitrail.__file__).parent.glob("*documents.py"))
    return "\n".join(describe_documents(importlib.import_module(f"vitrail.{name}")) for name in names)


def describe_documents(module: ModuleType) -> str:
    lines = inspect.getsource(module).splitlines()
    parts = []
    for node in ast.parse("\n".join(lines)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        rows = []
        for item in node.body:
            if isinstance(item, ast.AnnAssign):
                comment = lines[item.lineno - 1].partition("  # ")[2]
                rows.append([code(ast.unparse(item.target)), code(ast.unparse(item.annotation)), escape(comment)])
        parts.append(f"### {node.name}\n\n{ast.get_docstring(node) or ''}\n\n{table(['key', 'type', 'meaning'], rows)}")
    return "\n".join(parts)


def python() -> str:
    """Returns autodoc's directives for every public name."""
    parts = []
    for name in sorted(vitrail.__all__, key=lambda name: (name[0].isupper(), name)):
        value = getattr(vitrail, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        kind = "function" if inspect.isfunction(value) else "class"
        members = "" if kind == "function" else "   :members:\n"
        parts.append(f"## {name}\n\n```{{eval-rst}}\n.. auto{kind}:: vitrail.{name}\n{members}```\n")
    return "\n".join(parts)


GENERATORS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "recipes": recipes,
    "recipe-fields": recipe_fields,
    "cards": cards,
    "documents": documents,
    "python": python,
    **{f"source:{path.stem}": lambda path=path: annotate(path) for path in list_files()},
}
