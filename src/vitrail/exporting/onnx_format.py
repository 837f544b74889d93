"""Exports a classifier to an ONNX file with weights, classes, preprocessing, temperature and model card."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.console import silence_output
from vitrail.errors import UsageError, VitrailError
from vitrail.export_documents import Int8Document
from vitrail.exporting.int8 import quantize
from vitrail.exporting.model_card import write_model_card
from vitrail.exporting.onnx_classifier import OnnxClassifier, create_session
from vitrail.exporting.onnx_file import MAX_BYTES, import_onnx, weights_digest
from vitrail.exporting.preparation import prepare_document
from vitrail.exporting.probes import Probes
from vitrail.exporting.program import ProgramOptions, RunProgram
from vitrail.exporting.program_document import fill_load_code, program_document
from vitrail.exporting.program_format import ProgramFormat
from vitrail.exporting.trace import trace_program
from vitrail.installation import install_hint
from vitrail.version import __version__

OPSET = 20  # the first with all operators of a ViT, such as LayerNormalization and Gelu
LOAD_CODE = (
    'import onnxruntime; session = onnxruntime.InferenceSession("{file}"); '
    '(logits,) = session.run(["logits"], {inputs})  # pixels: {dtype} (B, {channels}, {height}, {width})'
)
TIMING_ROUNDS = 7
TIMING_IMAGES = 8


class OnnxFormat(ProgramFormat):
    """One .onnx file; `vitrail predict`, `evaluate` and `serve` run it too."""

    suffix = ".onnx"

    def __init__(self, classifier: Classifier, options: ProgramOptions, probes: Probes):
        super().__init__(classifier, options, probes)
        self.float_model = build_onnx_model(classifier, options)
        self.model = quantize(self.float_model) if options.int8 else self.float_model
        self.runner = classifier_in_memory(self.model, classifier)

    def run(self, pixels_BCHW: Tensor, output: str, target_BY: Tensor | None = None) -> Tensor:
        return self.runner.run(pixels_BCHW, output, target_BY)

    def measure_int8(self, pixels_BCHW: Tensor) -> Int8Document | None:
        float_runner = classifier_in_memory(self.float_model, self.classifier)
        times = time_in_turns([float_runner.logits, self.runner.logits], pixels_BCHW[:TIMING_IMAGES])
        return {
            "float_bytes": self.float_model.ByteSize(),
            "bytes": self.model.ByteSize(),
            "float_milliseconds": times[0],
            "milliseconds": times[1],
        }

    def write(self, path: Path, name: str, exported: dict[str, Any]) -> None:
        add_metadata(self.model, self.classifier, exported, unlike=self.options.unlike)
        path.write_bytes(self.model.SerializeToString())

    @classmethod
    def check_packages(cls, *, int8: bool) -> None:
        import_exporter()

    def read_back(self, path: Path) -> RunProgram:
        return OnnxClassifier.load(self.model_file(path)).run


def import_exporter() -> None:
    """Raises `UsageError` if a package is not installed that torch's ONNX exporter or the verification needs."""
    import_onnx()
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError:
        raise UsageError("onnxscript is not installed", install_hint("export")) from None


def build_onnx_model(classifier: Classifier, options: ProgramOptions) -> Any:
    """Returns the classifier as an ONNX model in float32, for a batch of any size.

    Raises `UsageError` if a package is missing, `VitrailError` if the weights are too large for one file.
    """
    import_exporter()
    weight_bytes = sum(4 * parameter.numel() for parameter in classifier.vit.parameters())
    if weight_bytes > MAX_BYTES - (64 << 20):
        raise VitrailError(
            f"the weights take {weight_bytes / 1e9:.1f} GB, more than the 2 GB of an ONNX file", "use --format torch"
        )
    with silence_output():
        exported = torch.onnx.export(
            trace_program(classifier, options), (), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=list(options.inputs), output_names=list(options.outputs),
        )  # fmt: skip
    assert exported is not None
    model = exported.model_proto
    remove_exporter_metadata(model)
    return model


def remove_exporter_metadata(model: Any) -> None:
    """Removes the exporter's source paths, and intermediate shapes that break quantization."""
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for port in (*model.graph.input, *model.graph.output):
        del port.metadata_props[:]
        port.type.tensor_type.shape.dim[0].dim_param = "batch"


def add_metadata(model: Any, classifier: Classifier, exported: dict[str, Any], *, unlike: bool = False) -> None:
    """Adds what loads the file again (key `vitrail`), what prepares an image without vitrail, and a model card.

    With `unlike` it says how to read that output.
    """
    document = {**program_document(classifier, unlike), "exported": exported, "sha256": weights_digest(model)}
    entries = {"vitrail": document, "preparation": prepare_document(classifier), "class_names": classifier.classes}
    del model.metadata_props[:]
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
    load_code = fill_load_code(LOAD_CODE, "model.onnx", classifier, exported)
    model.doc_string = write_model_card(classifier, "onnx", load_code, exported, is_program=True)
    model.producer_name, model.producer_version = "vitrail", __version__


def classifier_in_memory(model: Any, classifier: Classifier) -> OnnxClassifier:
    """Runs an ONNX model that has not been written to a file."""
    session = create_session(model.SerializeToString(), Path("the model"), None, "cpu")
    return OnnxClassifier.in_memory(session, classifier)


def time_in_turns(functions: list[Callable[[Tensor], Tensor]], pixels_BCHW: Tensor) -> list[float]:
    """Returns each function's milliseconds per image: the median over rounds in which the functions take turns."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(TIMING_ROUNDS):
        for function, milliseconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function(pixels_BCHW)
            milliseconds.append(1e3 * (time.perf_counter() - start) / len(pixels_BCHW))
    return [median(milliseconds) for milliseconds in times]
