"""Writes the chapters of docs/learn as notebooks into build/notebooks: python -m tools.make_notebooks.

The first cell installs vitrail; links lead to the repository.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath

import jupytext
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).parent.parent
LEARN = ROOT / "docs" / "learn"
OUT = ROOT / "build" / "notebooks"
REPOSITORY = "https://github.com/vitrail/vitrail"
INSTALL = f"!git clone -q {REPOSITORY} && pip install -q timm './vitrail[export,lora,serve]'\n%cd vitrail/docs/learn"
LINK = re.compile(r"\]\((?!https?:|#)([^)\s#]+)")


def list_chapters() -> list[str]:
    """Returns the names of the chapters in the order of the index."""
    listed = (LEARN / "index.md").read_text(encoding="utf-8").split("```{toctree}")[1].split("```")[0]
    return [line for line in listed.splitlines() if line and not line.startswith(":")]


def make_notebook(chapter: str) -> NotebookNode:
    """Returns a chapter as a notebook without outputs."""
    notebook = jupytext.read(LEARN / f"{chapter}.py", fmt="py:percent")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(lambda link: f"]({absolute_link(link[1])}", cell.source)
    notebook.cells.insert(0, new_code_cell(INSTALL, id="install"))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # random ids would make every notebook a new one
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def absolute_link(target: str) -> str:
    """Returns the address in the repository of a link in a chapter; that of a picture is the file itself."""
    kind = "raw" if target.endswith((".png", ".webp")) else "blob"
    return f"{REPOSITORY}/{kind}/main/{normpath(PurePosixPath('docs/learn') / target)}"


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for number, chapter in enumerate(list_chapters(), start=1):
        path = OUT / f"{number:02}-{chapter.replace('_', '-')}.ipynb"
        jupytext.write(make_notebook(chapter), path, fmt="ipynb")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
