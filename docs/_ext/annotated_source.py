"""The files of model/ beside their explanations, made from the files themselves.

A file is cut at its classes, functions and tables. The docstring of a piece, and the meaning of the letters in its
names of tensors (x_BTD), stand on the left; the code without that docstring stands on the right.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MODEL = ROOT / "src" / "vitrail" / "model"
GLOSSARY = ROOT / "docs" / "glossary.md"
SHAPE = re.compile(r"\b[a-z]\w*_([A-Zhw1]{1,6})\b")


def list_files() -> list[Path]:
    return sorted(path for path in MODEL.glob("*.py") if path.stem != "__init__")


def read_letters() -> dict[str, str]:
    """Returns the meaning of each letter of a shape, from the last section of the glossary."""
    text = GLOSSARY.read_text(encoding="utf-8").split("## Letters for shapes")[1]
    found = re.findall(r"\b([A-Z]) ([a-z][a-z ]*?(?: of the MLP)?)(?=[,.:])", text.replace("\n", " "))
    return {
        **dict(found),
        "H": "height in pixels",
        "W": "width in pixels",
        "h": "rows of patches",
        "w": "columns of patches",
    }


def annotate(path: Path) -> str:
    """Returns a file as Markdown: for each piece, what its docstring says and the code."""
    text = path.read_text(encoding="utf-8")
    lines, tree, letters = text.splitlines(), ast.parse(text), read_letters()
    pieces = [f"{ast.get_docstring(tree)}\n"]
    for first, last, node in cut_pieces(tree, len(lines)):
        docstring = docstring_lines(node)
        kept = [line for i, line in enumerate(lines[first - 1 : last], first) if i not in docstring]
        shown = "\n".join(kept).strip("\n")
        if not shown:
            continue
        words = explain(node, shown, letters)
        pieces.append(
            f"::::{{container}} annotated\n:::{{container}} words\n{words}\n:::\n```python\n{shown}\n```\n::::\n"
        )
    return "\n".join(pieces)


def cut_pieces(tree: ast.Module, length: int) -> list[tuple[int, int, ast.stmt | None]]:
    """Returns first line, last line and definition of each piece; comments above a definition belong to it."""
    definitions = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    pieces: list[tuple[int, int, ast.stmt | None]] = []
    start = tree.body[0].end_lineno + 1 if ast.get_docstring(tree) else 1
    for node in definitions:
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        if start < first:
            pieces.append((start, first - 1, None))
        pieces += cut_class(node, first) if isinstance(node, ast.ClassDef) else [(first, node.end_lineno, node)]
        start = node.end_lineno + 1
    return [*pieces, (start, length, None)]


def cut_class(node: ast.ClassDef, first: int) -> list[tuple[int, int, ast.stmt | None]]:
    """Returns the head of a class, and each method with a docstring as a piece of its own."""
    starts: list[tuple[int, ast.stmt | None]] = [(first, node)]
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and ast.get_docstring(method):
            starts.append((min([method.lineno, *(each.lineno for each in method.decorator_list)]), method))
    ends = [*(line - 1 for line, _ in starts[1:]), node.end_lineno]
    return [(line, end, each) for (line, each), end in zip(starts, ends, strict=True)]


def docstring_lines(node: ast.stmt | None) -> range:
    if node is None or ast.get_docstring(node) is None:
        return range(0)
    return range(node.body[0].lineno, node.body[0].end_lineno + 1)


def explain(node: ast.stmt | None, code: str, letters: dict[str, str]) -> str:
    """Returns the name and docstring of a piece, and the letters that its code uses."""
    if node is None:
        words = "Imports and tables." if re.search(r"^(from|import) ", code, re.MULTILINE) else "A table."
    else:
        words = f"**{node.name}**"
        if docstring := ast.get_docstring(node):
            words += f"\n\n{docstring}"
    used = sorted({letter for shape in SHAPE.findall(code) for letter in shape if letter in letters})
    if used:
        words += "\n\n*Letters: " + ", ".join(f"{letter} {letters[letter]}" for letter in used) + ".*"
    return words
