"""Show what a weight file contains: an artifact's metadata, or the matching checkpoints and the tensors.

--against compares two models and names the first tensor, and the first activation for the same images, that differ. The
exit code is then 1 if anything differs.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import add_torch_files, positive_number
from vitrail.cli.parser import Parser
from vitrail.errors import UsageError
from vitrail.tasks import GRADES, REGRESSION, SINGLE_LABEL, TASKS

if TYPE_CHECKING:
    from rich.table import Table

    from vitrail.differences import Difference

SHOWN_DIFFERENCES = 8
LIBRARIES = ("timm", "transformers", "torchvision")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="an artifact, a run folder, a weight file, or a folder with one")
    parser.add_argument(
        "--against", metavar="MODEL",
        help="another model, or timm, transformers or torchvision for the same weights there (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=positive_number, metavar="FRACTION",
        help="with --against: differences up to this fraction of the largest value count as equal (default: 1e-4)",
    )  # fmt: skip
    add_torch_files(parser)


def collect_facts(path: Path, torch_files: bool) -> dict[str, Any]:
    from vitrail.exporting.onnx_file import inspect_onnx
    from vitrail.exporting.openvino_file import inspect_openvino
    from vitrail.weights.inspection import inspect_file

    inspect = {".onnx": inspect_onnx, ".xml": inspect_openvino}.get(path.suffix.lower())
    return inspect(path) if inspect else inspect_file(path, torch_files=torch_files)


def run(arguments: argparse.Namespace) -> Answer:
    from rich.table import Table
    from rich.text import Text

    from vitrail.classifier import ARTIFACT_NAME
    from vitrail.console import escape_control_characters
    from vitrail.evaluation.evaluation import describe_scored_images
    from vitrail.weights.weight_files import WEIGHT_FILES

    if arguments.against is not None:
        return compare_models(arguments)
    if arguments.tolerance is not None:
        raise UsageError("--tolerance is for a comparison", "add --against MODEL")
    path = Path(arguments.file)
    if path.is_dir():
        path = next(
            (path / name for name in (ARTIFACT_NAME, *WEIGHT_FILES) if (path / name).is_file()), path / ARTIFACT_NAME
        )
    facts = collect_facts(path, arguments.torch_files)
    shown: list[object] = [f"{facts['kind']}, {facts['bytes']:,} bytes, {facts['parameters']:,} parameters"]
    if "architecture" in facts:
        shown.append(f"model: {facts['architecture']}")
        shown += [
            f"needs the {part['kind']} {part['name']!r} of the module {part['module']}" for part in facts["parts"]
        ]
        shown.append(f"{len(facts['classes'])} classes: {', '.join(facts['classes'][:20])}")
    elif "config" in facts:
        c, p = facts["config"], facts["preprocess"]
        shown.append(
            f"ViT of width {c['width']} and depth {c['depth']}, {c['heads']} heads, patch {c['patch']}, "
            f"image size {c['image_size']}, pool {c['pool']}, position {c['position']['kind']}"
        )
        for part in facts.get("parts", []):
            shown.append(f"needs the {part['kind']} {part['name']!r} of the module {part['module']}")
        shown.append(f"preprocessing: {p['fit']} to {p['image_size']}, mean {p['mean']}, std {p['std']}")
        kind = {GRADES: "grades", REGRESSION: "numbers"}.get(facts["task"], "classes")
        shown.append(f"{len(facts['classes'])} {kind}: {', '.join(facts['classes'][:20])}")
        if facts["task"] in (GRADES, REGRESSION):
            shown.append(f"task {facts['task']}")
        elif facts["task"] != SINGLE_LABEL:
            thresholds = zip(facts["classes"], facts["thresholds"], strict=False)
            shown.append(f"task {facts['task']}; thresholds: {', '.join(f'{n} {t:.3f}' for n, t in thresholds) or 0.5}")
        if "outputs" in facts:
            shown.append(f"inputs {', '.join(facts['inputs'])}; outputs {', '.join(facts['outputs'])}")
        for split, scores in facts["origin"].get("metrics", {}).items():
            name = TASKS[facts["task"]].score if facts["task"] in (GRADES, REGRESSION) else "accuracy"
            shown.append(f"{split} {name} {scores[name]:.4f} on {describe_scored_images(scores)}")
    else:
        shown.append(f"layout: {' or '.join(facts['layouts']) or 'no ViT that vitrail knows'}")
        if facts["cards"]:
            few = ", ".join(facts["cards"][:8])
            more = f" and {len(facts['cards']) - 8} more" if len(facts["cards"]) > 8 else ""
            shown.append(f"size {' or '.join(facts['sizes'])}; matching checkpoints: {few}{more}")
        table = Table("tensor", "shape", "type", box=None, header_style="bold")
        for name, tensor in facts["tensors"].items():
            table.add_row(Text(escape_control_characters(name)), "x".join(map(str, tensor["shape"])), tensor["dtype"])
        shown.append(table)
    return Answer(facts, shown)


def compare_models(arguments: argparse.Namespace) -> Answer:
    """Returns what differs between FILE and the model of --against; the code is 1 if anything does."""
    from vitrail.comparison import EXACT
    from vitrail.differences import find_differences, load_in_library
    from vitrail.loading import load

    first = load(arguments.file, torch_files=arguments.torch_files)
    if arguments.against in LIBRARIES:
        second: Any = load_in_library(first, arguments.against)
    else:
        second = load(arguments.against, torch_files=arguments.torch_files)
    tolerance = EXACT.relative if arguments.tolerance is None else arguments.tolerance
    differences = find_differences(first, second, tolerance=tolerance)
    shown: list[object] = []
    for kind, rows in (("tensors", differences.tensors), ("activations", differences.activations)):
        different = [row for row in rows if not row.is_equal]
        if not rows:
            continue
        if not different:
            shown.append(f"all {len(rows)} {kind} are equal (tolerance {tolerance:g})")
            continue
        shown.append(f"{len(different)} of {len(rows)} {kind} differ; the first is {different[0].name}")
        shown.append(tabulate_differences(kind, different[:SHOWN_DIFFERENCES]))
        if len(different) > SHOWN_DIFFERENCES:
            shown.append(f"and {len(different) - SHOWN_DIFFERENCES} more")
    if not differences.activations:
        shown.append("activations were not compared: the models take images of different shapes")
    document = {"first": arguments.file, "second": arguments.against, "tolerance": tolerance, **differences.to_json()}
    has_difference = differences.first_tensor or differences.first_activation
    return Answer(document, shown, 1 if has_difference else 0)


def tabulate_differences(kind: str, rows: "list[Difference]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    from vitrail.console import escape_control_characters

    table = Table(kind, "first", "second", "largest difference", "largest value", box=None, header_style="bold")
    for row in rows:
        shapes = [
            "missing" if shape is None else "x".join(map(str, shape)) for shape in (row.first_shape, row.second_shape)
        ]
        values = ["-" if value is None else f"{value:.3g}" for value in (row.max_difference, row.largest)]
        table.add_row(Text(escape_control_characters(row.name)), *shapes, *values)
    return table
