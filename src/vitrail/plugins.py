"""Imports plugins: modules that call `vitrail.register`.

A plugin is imported because its user named it (`--plugin`, or an import in Python), or installed it: the entry points
of the group `vitrail.plugins` are imported when a name is not known without them.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from vitrail.errors import UsageError, VitrailError, first_line

GROUP = "vitrail.plugins"

_loaded: dict[str, None] = {}  # what was imported: dotted names, and absolute paths of files
_importing: list[str] = []  # the plugins that are being imported, the innermost last
_searched_entry_points = False


def load_plugins(plugins: Iterable[str]) -> None:
    """Imports these plugins, dotted names or paths of .py files, unless they are imported already.

    Raises `VitrailError` naming the plugin and the error if one cannot be imported.
    """
    for plugin in plugins:
        path = find_file(plugin)
        key = plugin if path is None else str(path)
        if key not in _loaded:
            with name_errors(plugin, plugin if path is None else path.stem):
                _import_module(plugin) if path is None else _import_file(path)
            _loaded[key] = None


def loaded_plugins() -> list[str]:
    """Returns the plugins that were imported, as `load_plugins` takes them in another process."""
    return list(_loaded)


def importing_plugin() -> str | None:
    """Returns the name of the module of the plugin that is being imported now, if one is."""
    return _importing[-1] if _importing else None


def load_entry_points() -> None:
    """Imports the installed plugins, at most once per process; raises `VitrailError` if one cannot be imported."""
    global _searched_entry_points
    if _searched_entry_points:
        return
    _searched_entry_points = True
    from importlib.metadata import entry_points  # slow to import

    for entry_point in entry_points(group=GROUP):
        with name_errors(f"{entry_point.name} ({entry_point.value})", entry_point.module):
            entry_point.load()


def find_file(plugin: str) -> Path | None:
    """Returns the absolute path of a plugin that is a file; None for the dotted name of a module.

    A name is a file of the working directory if Python finds no module of that name.
    """
    if plugin.endswith(".py") or os.sep in plugin:
        return Path(plugin).absolute()
    local = Path(f"{plugin}.py").absolute()
    if plugin.isidentifier() and local.is_file() and not _is_importable(plugin):
        return local
    return None


@contextmanager
def name_errors(plugin: str, module: str) -> Iterator[None]:
    """Inside, a plugin is imported: its errors become a `VitrailError` that names it."""
    _importing.append(module)
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = str(error) if isinstance(error, VitrailError) else f"{type(error).__name__}: {first_line(error)}"
        hint = f'python -c "import {module}" shows where it fails'
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            hint = "name a module that Python can import, or the path of a .py file"
        raise UsageError(f"the plugin {plugin} cannot be imported: {reason}", hint) from error
    finally:
        _importing.pop()


def _import_module(name: str) -> ModuleType:
    if not name or name.startswith("."):
        raise UsageError(f"{name!r} is not the name of a module")
    return importlib.import_module(name)


def _import_file(path: Path) -> None:
    """Imports a file as the module of its name, which worker processes can import too."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    name = path.stem
    if name in sys.modules or _is_importable(name):
        module = importlib.import_module(name)
        if (origin := getattr(module, "__file__", None)) is None or not os.path.samefile(origin, path):
            raise UsageError(f"there is another module {name}, {origin or 'built into Python'}", "rename the file")
        return
    sys.path.append(str(path.parent))  # last: a file next to it replaces no other module
    importlib.invalidate_caches()
    importlib.import_module(name)


def _is_importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
