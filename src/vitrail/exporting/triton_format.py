"""Exports a classifier to a model folder of a Triton repository: config.pbtxt, 1/model.onnx, labels.txt."""

import json
import re
from pathlib import Path
from typing import Any

from vitrail.errors import UsageError
from vitrail.exporting.onnx_format import OnnxFormat
from vitrail.exporting.program import LOGITS
from vitrail.files import check_new_folder, write_text

MAX_BATCH_SIZE = 64
MAX_QUEUE_DELAY_US = 1000  # how long Triton may wait for more images


class TritonFormat(OnnxFormat):
    """The folder of one model, named after it; `tritonserver --model-repository` takes the folder above."""

    suffix = ""

    @classmethod
    def check_path(cls, path: Path) -> None:
        if not re.fullmatch(r"[\w.-]+", path.name):
            raise UsageError(f"{path.name!r} is not a valid name of a Triton model", "use letters, digits, - and _")
        check_new_folder(path)

    def model_file(self, path: Path) -> Path:
        return path / "1" / "model.onnx"

    def write(self, path: Path, name: str, exported: dict[str, Any]) -> None:
        classes = self.classifier.classes
        self.model_file(path).parent.mkdir()
        super().write(self.model_file(path), name, exported)
        write_text(path / "config.pbtxt", config_text(name, self.model, has_labels=bool(classes)))
        if classes:
            write_text(path / "labels.txt", "".join(f"{' '.join(label.split())}\n" for label in classes))


def config_text(name: str, model: Any, has_labels: bool) -> str:
    """Returns Triton's model configuration in protobuf's text format; its dims leave out the batch."""
    lines = [f"name: {json.dumps(name)}", 'backend: "onnxruntime"', f"max_batch_size: {MAX_BATCH_SIZE}"]
    for kind, ports in (("input", model.graph.input), ("output", model.graph.output)):
        for port in ports:
            label = ', label_filename: "labels.txt"' if has_labels and port.name == LOGITS else ""
            dims = ", ".join(str(dim.dim_value) for dim in port.type.tensor_type.shape.dim[1:])
            data_type = "TYPE_UINT8" if port.type.tensor_type.elem_type == 2 else "TYPE_FP32"
            lines.append(
                f"{kind} [ {{ name: {json.dumps(port.name)}, data_type: {data_type}, dims: [ {dims} ]{label} }} ]"
            )
    lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_QUEUE_DELAY_US} }}")
    return "\n".join(lines) + "\n"
