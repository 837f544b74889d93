"""A file of another library -> its settings: a YAML file, a checkpoint of torch, or a command line."""

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.installation import install_hint
from vitrail.migration import timm, torchvision, ultralytics
from vitrail.migration.settings import ImportedRecipe, Library, convert_settings, find_library
from vitrail.weights.tensor_files import TORCH_SUFFIXES

LIBRARIES = (ultralytics.LIBRARY, timm.LIBRARY, torchvision.LIBRARY)
MAX_TEXT_BYTES = 1 << 20
KNOWN_FILES = (
    "timm's or ultralytics' args.yaml, a checkpoint of torchvision's or timm's script, or a torchvision command"
)
SCRIPT = "train.py"  # of torchvision's references


def import_recipe(path: Path, processes: int | None = None) -> ImportedRecipe:
    """Returns the recipe of a training in another library.

    `processes` is the number of its processes; the default is what the file says, else 1. Raises `UsageError` for
    another file.
    """
    values, library = read_settings(path)
    return convert_settings(values, library, path.stem, processes)


def read_settings(path: Path) -> tuple[Mapping[str, Any], Library]:
    """Returns the settings in a file, and their library."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if path.name.lower().endswith(TORCH_SUFFIXES):
        values = read_checkpoint(path)
    elif path.suffix.lower() in (".yaml", ".yml"):
        values = read_yaml(path)
    else:
        return read_command(path), torchvision.LIBRARY
    library = find_library(values, LIBRARIES)
    if library is None:
        raise UsageError(f"{path} has no settings of timm, torchvision or ultralytics", f"give {KNOWN_FILES}")
    return values, library


def read_text(path: Path) -> str:
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise UsageError(f"{path} is larger than {MAX_TEXT_BYTES:,} bytes", f"give {KNOWN_FILES}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file", f"give {KNOWN_FILES}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the settings in a YAML file."""
    try:
        import yaml
    except ImportError:
        raise UsageError("reading YAML needs PyYAML", install_hint("migrate")) from None
    try:
        document = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path} is not YAML: {first_line(error)}") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path} has no settings", f"give {KNOWN_FILES}")
    return {str(name): value for name, value in document.items()}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns the options that a training script saved in its checkpoint; nothing but plain values is unpickled."""
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        raise VitrailError(
            f"{path} holds more than tensors and plain values, or is damaged; nothing in it was run "
            f"({first_line(error)})",
            "give the args.yaml beside it, or the command line in a text file",
        ) from None
    options = loaded.get("args") if isinstance(loaded, dict) else None
    if not isinstance(options, argparse.Namespace):
        raise UsageError(f"{path} does not say how it was trained", f"give {KNOWN_FILES}")
    return vars(options)


def read_command(path: Path) -> dict[str, Any]:
    """Returns the options of a command line with torchvision's train.py, with the defaults of the script."""
    text = read_text(path).replace("\\\n", " ")
    line = next((each for each in text.splitlines() if SCRIPT in each and not each.lstrip().startswith("#")), None)
    if line is None:
        raise UsageError(f"{path} has no command with {SCRIPT}", f"give {KNOWN_FILES}")
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{path}: the command cannot be read: {error}", "close every quote") from None
    script = next((i for i, word in enumerate(words) if word.endswith(SCRIPT)), None)
    if script is None:
        raise UsageError(f"{path} has no command with {SCRIPT}", f"give {KNOWN_FILES}")
    launcher, options = (parse_options(part) for part in (words[:script], words[script + 1 :]))
    processes = 1
    for name in ("nproc_per_node", "nnodes"):
        count = launcher.get(name, 1)
        processes *= count if isinstance(count, int) else 1
    named = {torchvision.SHORT_NAMES.get(name, name): value for name, value in options.items()}
    return {**torchvision.DEFAULTS, "world_size": processes, **named}


def parse_options(words: list[str]) -> dict[str, Any]:
    """Returns `--name value`, `--name=value` and `--name` as values by name; a name has underscores."""
    options: dict[str, Any] = {}
    name = None
    for word in words:
        if word.startswith("-") and not is_number(word):
            name, has_value, value = word.lstrip("-").partition("=")
            name = name.replace("-", "_")
            options[name] = parse_value(value) if has_value else True
            name = None if has_value else name
        elif name is not None:
            options[name] = parse_value(word)
            name = None
    return options


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def parse_value(text: str) -> Any:
    """Returns a number if the text is one, else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
