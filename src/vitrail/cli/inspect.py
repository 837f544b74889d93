"""Show what a weight file contains: an artifact's metadata, or the matching checkpoints and the tensors."""

import argparse
from pathlib import Path
from typing import Any

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import add_torch_files
from vitrail.cli.parser import Parser
from vitrail.tasks import GRADES, REGRESSION, SINGLE_LABEL, TASKS


def add_arguments(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="an artifact, a run folder, a weight file, or a folder with one")
    add_torch_files(parser)


def collect_facts(path: Path, torch_files: bool) -> dict[str, Any]:
    from vitrail.exporting.onnx_file import inspect_onnx
    from vitrail.weights.inspection import inspect_file

    if path.suffix.lower() != ".onnx":
        return inspect_file(path, torch_files=torch_files)

    return inspect_onnx(path)


def run(arguments: argparse.Namespace) -> Answer:
    from rich.table import Table
    from rich.text import Text

    from vitrail.classifier import ARTIFACT_NAME
    from vitrail.console import escape_control_characters
    from vitrail.evaluation.evaluation import describe_scored_images
    from vitrail.weights.weight_files import WEIGHT_FILES

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
