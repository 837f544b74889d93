"""The structure that ARCHITECTURE.md describes: layers, no import cycles, short files and functions, public names."""

import ast
import subprocess
import sys
from pathlib import Path

import vitrail

sys.path.append(str(Path(__file__).parent.parent / "tools"))

from import_cycles import find_cycles, find_imports

ROOT = Path(vitrail.__file__).parent

# A package or module imports only from itself and from the layers above it in this list.
LAYERS = [
    {
        "annotation_files",
        "caches",
        "documents",
        "export_documents",
        "json_types",
        "fold_documents",
        "image_documents",
        "label_documents",
        "probe_documents",
        "number_documents",
        "target_scale",
        "version",
        "errors",
        "options",
        "console",
        "deprecation",
        "files",
        "installation",
        "interrupts",
        "machine",
        "batching",
        "openmp",
        "intervals",
        "processes",
        "ray_cluster",
        "parts",
        "plugins",
        "tasks",
    },
    {"model"},
    {"fast", "data"},
    {"weights"},
    {"image_predictions"},
    {"classifier"},
    {"module_classifier"},
    {"comparison", "evaluation", "explanation", "training"},
    {"callbacks", "exporting", "migration", "report"},
    {"loading"},
    {"benchmarking", "differences", "prediction", "pretraining", "runs", "serving"},
    {"api", "registry", "sklearn", "sweeps"},
    {"cli"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def test_imports_go_down_the_layers():
    wrong = []
    for each in find_imports():
        if "vitrail" in (each.importer, each.imported) or each.importer == "vitrail.__main__":
            continue
        importer, imported = each.importer.split(".")[1], each.imported.split(".")[1]
        if (importer != imported and LAYER[imported] >= LAYER[importer] > 0) or LAYER[importer] == 0 < LAYER[imported]:
            wrong.append(f"{each.importer} imports {each.imported}")
    assert not wrong


def test_there_are_no_import_cycles():
    """Eager, lazy, for types only, or through the package root; `python tools/import_cycles.py` prints them."""
    assert find_cycles(find_imports()) == []


def test_the_model_depends_on_errors_options_and_parts_alone():
    for each in find_imports():
        if each.importer.startswith("vitrail.model"):
            assert each.imported.split(".")[1] in ("model", "errors", "options", "parts"), each


def test_the_model_is_short():
    assert sum(len(path.read_text().splitlines()) for path in (ROOT / "model").glob("*.py")) <= 650


def test_files_and_functions_are_short():
    long = []
    for path in ROOT.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 400:
            long.append(str(path))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 80:
                long.append(f"{path}:{node.lineno} {node.name}")
    assert not long


def test_javascript_lines_are_short():
    for path in ROOT.rglob("*.js"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert len(line) <= 120, f"{path}:{number}"


def test_the_public_names():
    assert callable(vitrail.train)
    assert all(hasattr(vitrail, name) for name in vitrail.__all__)


def test_importing_is_light():
    """Heavy libraries are imported by the verb that needs them."""
    heavy = ["sklearn", "matplotlib", "pyarrow", "tensorboard", "scipy", "pandas", "timm", "onnx", "jinja2", "datasets"]
    heavy += ["optuna", "ray"]
    code = f"import sys, vitrail; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
