"""Prints the import cycles of the package: python tools/import_cycles.py. Exits with 1 if there is one.

It reads the source and runs none of it. Four kinds of import count:

- eager: at the top of a module
- lazy: inside a function
- types: under `if TYPE_CHECKING`
- root: `import vitrail` or `from vitrail import x`, which depends on everything that the package exports

Importing a.b.c also runs the __init__ of a.b, so that is a dependency too, except for modules inside a.b themselves.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent / "src" / "vitrail"
KINDS = ("eager", "lazy", "types", "root")


class Import(NamedTuple):
    """One module depends on another, and how."""

    importer: str
    imported: str
    kind: str


def find_modules(package: Path) -> dict[str, Path]:
    """Returns every module of a package by its dotted name."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def find_imports(package: Path = PACKAGE) -> list[Import]:
    """Returns the imports between the modules of a package, each once per kind."""
    modules = find_modules(package)
    root = package.name
    imports: set[Import] = set()
    for importer, path in modules.items():
        for node, kind in walk_imports(ast.parse(path.read_text(encoding="utf-8")), "eager"):
            for name in imported_names(node, modules):
                if name == root and importer != root:
                    imports.add(Import(importer, root, "root"))
                for ancestor in ancestors(name):
                    if (
                        ancestor in modules and not f"{importer}.".startswith(f"{ancestor}.")
                    ) or ancestor == name != root:
                        imports.add(Import(importer, ancestor, kind))
    return sorted(each for each in imports if each.importer != each.imported)


def walk_imports(node: ast.AST, kind: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Yields the import statements below a node with their kind."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, kind
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from walk_imports(child, "lazy")
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from walk_imports(child, "types")
        else:
            yield from walk_imports(child, kind)


def imported_names(node: ast.Import | ast.ImportFrom, modules: dict[str, Path]) -> Iterator[str]:
    """Yields the modules of the package that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in modules)
        return
    for alias in node.names:
        name = f"{node.module}.{alias.name}"
        if name in modules:
            yield name
        elif node.module in modules:
            yield node.module


def ancestors(name: str) -> list[str]:
    """Returns a.b.c, a.b for a.b.c; the root a only for a itself."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts), 1, -1)] or [name]


def find_cycles(imports: list[Import]) -> list[list[str]]:
    """Returns the groups of modules that import each other, largest first (Tarjan's strongly connected components)."""
    graph: dict[str, list[str]] = {}
    for each in imports:
        graph.setdefault(each.importer, []).append(each.imported)
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for target in graph.get(module, []):
            if target not in order:
                visit(target)
            if target in stack:
                low[module] = min(low[module], low[target])
        if low[module] == order[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                cycles.append(sorted(group))

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return sorted(cycles, key=len, reverse=True)


def main() -> int:
    """Prints the cycles of each combination of kinds; returns the exit code."""
    imports = find_imports()
    counts = ", ".join(f"{sum(each.kind == kind for each in imports)} {kind}" for kind in KINDS)
    print(f"{len({each.importer for each in imports})} modules import others of the package: {counts}")
    cycles: list[list[str]] = []
    for last in range(1, len(KINDS) + 1):
        cycles = find_cycles([each for each in imports if each.kind in KINDS[:last]])
        print(f"{' + '.join(KINDS[:last])}: {len(cycles) or 'no'} cycle{'' if len(cycles) == 1 else 's'}")
        for cycle in cycles:
            print("  " + " ".join(cycle))
    return 1 if cycles else 0


if __name__ == "__main__":
    sys.setrecursionlimit(10_000)
    sys.exit(main())
