"""Checks of the chapters as notebooks, and of what vitrail shows in one: `make test-docs`. They start real kernels."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from tools.make_notebooks import INSTALL, list_chapters, make_notebook

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def kernel_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels import this checkout."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def execute(notebook: Any, folder: Path) -> Any:
    """Runs a notebook in a kernel of its own; returns it with its outputs."""
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def list_outputs(cell: Any, kind: str) -> list[str]:
    """Returns what a cell shows in a format, as text."""
    return [output["data"][kind] for output in cell["outputs"] if kind in output.get("data", {})]


@pytest.mark.parametrize("chapter", list_chapters())
def test_a_chapter_is_a_notebook_with_one_install_cell(chapter: str):
    notebook = make_notebook(chapter)
    nbformat.validate(notebook)
    assert notebook == make_notebook(chapter)
    assert [INSTALL in cell.source for cell in notebook.cells] == [True] + [False] * (len(notebook.cells) - 1)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        assert target.startswith(("https://", "#")), f"a notebook does not have the file {target}"
        if inside := re.search(r"/(?:blob|raw)/main/([^#]+)", target):
            assert (ROOT / inside[1]).exists(), target


# What a reader may write in the first exercise on attention.
OWN_ATTENTION = """
def my_attention(q_BNTK, k_BNSK, v_BNSK):
    scores_BNTS = torch.einsum("bntk,bnsk->bnts", q_BNTK, k_BNSK) / q_BNTK.shape[-1] ** 0.5
    return torch.einsum("bnts,bnsk->bntk", scores_BNTS.softmax(dim=-1), v_BNSK)

test_attention(my_attention)
"""


@pytest.mark.parametrize("chapter", ["patches", "attention"])
def test_a_notebook_runs_in_its_own_kernel(chapter: str, tmp_path: Path):
    """In a copy of the repository's layout, where the install cell ends; the errors are those of the exercises."""
    for name in ("docs/learn", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    notebook = make_notebook(chapter)
    install = notebook.cells.pop(0)
    assert install.source.endswith("%cd vitrail/docs/learn")
    if chapter == "attention":
        notebook.cells.append(new_code_cell(OWN_ATTENTION))
    execute(notebook, tmp_path / "docs" / "learn")
    if chapter == "attention":
        assert notebook.cells[-1]["outputs"][0]["text"] == "my_attention passes its test\n"
    exercises = [cell for cell in notebook.cells if "raises-exception" in cell.metadata.get("tags", [])]
    errors = [cell for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert errors == exercises and len(exercises) >= 2
    assert any(list_outputs(cell, "image/png") for cell in notebook.cells if cell.cell_type == "code")


def test_progress_explanations_and_reports_show_themselves(tmp_path: Path):
    code = [
        "import vitrail\nfrom vitrail import console\nconsole.NOTEBOOK_INTERVAL_S = 0.0",
        "run = vitrail.train('digits', out='run', epochs=1, width=16, depth=1, heads=2, pictures=False)",
        "run",
        f"vitrail.explain(run.classifier, {str(ROOT / 'examples' / 'digits' / '7.png')!r})",
        "with console.progress_bar('images', 10) as bar:\n    bar.advance(3)\n    1 / 0",
    ]
    notebook = new_notebook(cells=[new_code_cell(each) for each in code])
    notebook.cells[-1].metadata["tags"] = ["raises-exception"]
    _, _, run, explanation, bar = execute(notebook, tmp_path).cells
    (report,) = list_outputs(run, "text/html")
    assert 'srcdoc="&lt;!doctype html' in report.lower() and "test accuracy" in report
    (figure,) = list_outputs(explanation, "text/html")
    assert figure.startswith("<figure><img alt=") and list_outputs(explanation, "image/png")
    assert list_outputs(bar, "text/html") == [""]  # it is gone after the error, too


def test_a_progress_bar_is_shown_while_it_runs(tmp_path: Path):
    code = [
        "from vitrail import console\nconsole.NOTEBOOK_INTERVAL_S = 0.0\nbar = console.NotebookBar('images', 10)",
        "assert console.is_notebook()\nbar.advance(3)",
        "from vitrail.console import quiet, stderr\nprint(quiet, stderr.is_terminal)",
    ]
    _, bar, state = execute(new_notebook(cells=[new_code_cell(each) for each in code]), tmp_path).cells
    (shown,) = list_outputs(bar, "text/html")
    assert shown.startswith('<progress value="3" max="10"') and "images: 3 of 10" in shown
    assert state["outputs"][0]["text"] == "False False\n"
