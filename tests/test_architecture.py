"""The tree says how data flows; these tests hold it to that."""

import ast
import subprocess
import sys
from pathlib import Path

import vitrail

ROOT = Path(vitrail.__file__).parent

# A folder may import from itself, from those named here, and from what belongs to no stage.
MAY_IMPORT = {
    "model": set(),
    "data": {"model"},
    "weights": {"model", "data"},
    "training": {"model", "data", "weights"},
    "evaluation": {"model", "data", "weights", "classifier"},
    "explanation": {"model", "data", "weights", "classifier"},
    "exporting": {"model", "data", "weights", "classifier", "explanation"},
    "prediction": {"data", "weights", "classifier", "exporting"},
    "serving": {"model", "data", "weights", "classifier", "explanation", "exporting"},
    "benchmarking": {"model", "data", "weights", "classifier"},
    "report": {"model", "data", "weights", "classifier", "evaluation", "explanation"},
    "runs": {"model", "data", "weights", "classifier", "training", "evaluation", "explanation", "report"},
    "sweeps": {"model", "data", "weights", "classifier", "training", "evaluation", "runs"},
    # its methods `evaluate`, `probe` and `explain` reach forward, for the sake of who types; by imports inside them
    "classifier.py": {"model", "data", "weights", "evaluation", "explanation"},
}
SHARED = {  # modules that belong to no stage
    "errors",
    "files",
    "console",
    "machine",
    "options",
    "interrupts",
    "ray_cluster",
    "version",
    "intervals",
    "processes",
    "comparison",
    "fast",
}


def imports(file: Path) -> set[str]:
    """The second word of every `vitrail.x...` that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("vitrail.")}
    return found


def test_arrows_run_one_way():
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for stage, allowed in MAY_IMPORT.items()
        for file in ([ROOT / stage] if stage.endswith(".py") else (ROOT / stage).rglob("*.py"))
        for name in imports(file) - allowed - SHARED - {stage}
    ]
    assert not wrong


def test_the_model_knows_neither_files_nor_training():
    for file in (ROOT / "model").glob("*.py"):
        assert imports(file) <= {"model", "errors", "options"}, file.name


def test_the_public_names():
    assert set(vitrail.__all__) == {
        "Classifier", "Explanation", "PredictSummary", "Prediction", "Run", "Sweep", "UsageError", "ViT", "ViTConfig",
        "VitrailError", "load", "predict_all", "recording", "sweep", "train",
    }  # fmt: skip
    assert callable(vitrail.train)
    assert all(hasattr(vitrail, name) for name in vitrail.__all__)


def test_importing_is_light():
    """Heavy libraries are imported by the verb that needs them."""
    heavy = ["sklearn", "matplotlib", "pyarrow", "tensorboard", "scipy", "pandas", "timm", "onnx", "jinja2", "datasets"]
    heavy += ["optuna", "ray"]
    code = f"import sys, vitrail; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
