"""A classifier -> a folder of a Triton model repository: config.pbtxt, 1/model.onnx, labels.txt."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitrail.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.exporting.onnx_format import proven_model, write_model
from vitrail.exporting.program import LOGITS, ProgramOptions
from vitrail.exporting.result import ExportResult
from vitrail.exporting.verify import Probes
from vitrail.files import write_folder_atomically, write_text

MOST_AT_ONCE = 64  # images that Triton may put into one batch
WAIT = 1000  # microseconds that it may wait for more of them


def export_triton(
    classifier: Classifier,
    out: str | Path,
    extras: ProgramOptions,
    check: Probes,
    tick: Callable[[int], object] = lambda n: None,
) -> ExportResult:
    """Writes the folder of one model, which its name names; `tritonserver --model-repository` takes the folder above.

    Raises `UsageError` where `out` exists or is no name for a model, `VitrailError` where the program does not agree.
    """
    folder = Path(out)
    if not re.fullmatch(r"[\w.-]+", folder.name):
        raise UsageError(f"{folder.name!r} is no name for a model", "use letters, digits, - and _")
    with write_folder_atomically(folder) as inside:
        model, agreed, made = proven_model(classifier, extras, check, tick)
        (inside / "1").mkdir()
        write_model(inside / "1" / "model.onnx", model, classifier, check)
        size = (inside / "1" / "model.onnx").stat().st_size
        write_text(inside / "config.pbtxt", config_text(folder.name, model, bool(classifier.classes)))
        if classifier.classes:
            write_text(inside / "labels.txt", "".join(f"{' '.join(name.split())}\n" for name in classifier.classes))
    return ExportResult(folder, "triton", extras.outputs, agreed, size, made)


def config_text(name: str, model: Any, labelled: bool) -> str:
    """What Triton asks to know, in protobuf's text form; the batch is not among the dims."""
    lines = [f"name: {json.dumps(name)}", 'backend: "onnxruntime"', f"max_batch_size: {MOST_AT_ONCE}"]
    for kind, ports in (("input", model.graph.input), ("output", model.graph.output)):
        for port in ports:
            label = ', label_filename: "labels.txt"' if labelled and port.name == LOGITS else ""
            dims = ", ".join(str(dim.dim_value) for dim in port.type.tensor_type.shape.dim[1:])
            type_ = "TYPE_UINT8" if port.type.tensor_type.elem_type == 2 else "TYPE_FP32"
            lines.append(f"{kind} [ {{ name: {json.dumps(port.name)}, data_type: {type_}, dims: [ {dims} ]{label} }} ]")
    lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {WAIT} }}")
    return "\n".join(lines) + "\n"
