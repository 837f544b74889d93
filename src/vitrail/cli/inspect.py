"""Say what a weight file is: an artefact with everything it holds, or whose ViT of which size, and its tensors."""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from vitrail.classifier import ARTIFACT_NAME
from vitrail.cli.main import Answer
from vitrail.console import escape_control_characters
from vitrail.evaluation.evaluation import describe_scored_images
from vitrail.weights.inspection import inspect_file
from vitrail.weights.weight_files import WEIGHT_FILES


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("file", metavar="FILE", help="an artefact, a run folder, a weight file, or a folder with one")
    parser.add_argument(
        "--torch-files", action="store_true", help="read plain tensors from torch's own files (.pt .pth .bin)"
    )


def facts_of(path: Path, torch_files: bool) -> dict[str, Any]:
    """What the file is, by its kind."""
    if path.suffix.lower() != ".onnx":
        return inspect_file(path, torch_files=torch_files)
    from vitrail.exporting.onnx_classifier import inspect_onnx

    return inspect_onnx(path)


def run(arguments: argparse.Namespace) -> Answer:
    """Reads the file and shows what it holds."""
    path = Path(arguments.file)
    if path.is_dir():
        path = next(
            (path / name for name in (ARTIFACT_NAME, *WEIGHT_FILES) if (path / name).is_file()), path / ARTIFACT_NAME
        )
    facts = facts_of(path, arguments.torch_files)
    shown: list[object] = [f"{facts['kind']}, {facts['bytes']:,} bytes, {facts['parameters']:,} parameters"]
    if "config" in facts:
        c, p = facts["config"], facts["preprocess"]
        shown.append(
            f"ViT {c['width']}x{c['depth']}, {c['heads']} heads, patch {c['patch']}, image {c['image_size']}, "
            f"pool {c['pool']}, position {c['position']['kind']}"
        )
        shown.append(f"preprocessing: {p['fit']} to {p['image_size']}, mean {p['mean']}, std {p['std']}")
        shown.append(f"{len(facts['classes'])} classes: {', '.join(facts['classes'][:20])}")
        if "outputs" in facts:
            shown.append(f"takes {', '.join(facts['inputs'])}, gives {', '.join(facts['outputs'])}")
        for split, scores in facts["origin"].get("metrics", {}).items():
            shown.append(f"{split} accuracy {scores['accuracy']:.4f} on {describe_scored_images(scores)}")
    else:
        shown.append(f"written like {' or '.join(facts['layouts']) or 'no ViT that vitrail knows'}")
        if facts["cards"]:
            few = ", ".join(facts["cards"][:8])
            more = f" and {len(facts['cards']) - 8} more" if len(facts["cards"]) > 8 else ""
            shown.append(f"size {' or '.join(facts['sizes'])}; by its shapes it can be {few}{more}")
        table = Table("tensor", "shape", "type", box=None, header_style="bold")
        for name, tensor in facts["tensors"].items():
            table.add_row(Text(escape_control_characters(name)), "x".join(map(str, tensor["shape"])), tensor["dtype"])
        shown.append(table)
    return Answer(facts, shown)
