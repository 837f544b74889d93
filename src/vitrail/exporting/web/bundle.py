"""Joins the JavaScript modules of the page into one script.

A page that is opened from disk cannot load modules. Each module therefore becomes a function that returns its exports,
and each import a destructuring of another module's exports. Nothing else changes, so that the script reads like its
sources. The modules follow two rules, which eslint.config.js checks: imports are `import { a, b } from "./path.js";`,
and exports are `export function`, `export class` or `export const` at the start of a line.
"""

import re
from importlib.resources import files
from posixpath import dirname, join, normpath

IMPORT = re.compile(r'^import \{([^}]*)\} from "([^"]+)";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (\w+))", re.MULTILINE)


def read_site_file(name: str) -> str:
    """Returns a file of the page's source."""
    return files("vitrail.exporting.web").joinpath("site", name).read_text(encoding="utf-8")


def bundle_modules(entry: str) -> str:
    """Returns a module and the modules that it imports as one script; raises `ValueError` for a cycle."""
    bundled: dict[str, str] = {}

    def add(path: str, importers: tuple[str, ...] = ()) -> None:
        if path in importers:
            raise ValueError(f"import cycle: {' -> '.join([*importers, path])}")
        if path in bundled:
            return
        source = read_site_file(path)
        for _, target in IMPORT.findall(source):
            add(resolve(path, target), (*importers, path))
        exports = ", ".join(EXPORT.findall(source))
        body = IMPORT.sub(lambda match: f"const {{{match[1]}}} = {variable(resolve(path, match[2]))};\n", source)
        bundled[path] = (
            f"// {path}\nconst {variable(path)} = (() => {{\n{EXPORT.sub('', body)}return {{ {exports} }};\n}})();\n"
        )

    add(entry)
    return "\n".join(bundled.values())


def resolve(importer: str, target: str) -> str:
    """Returns the path of an imported module, relative to the site folder."""
    return normpath(join(dirname(importer), target))


def variable(path: str) -> str:
    """Returns the name of the variable that holds a module's exports."""
    return "module_" + re.sub(r"\W", "_", path.removesuffix(".js"))
