"""Exports a classifier to an OpenVINO model (.xml and .bin) with classes, preprocessing, temperature and model card."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.console import silence_output
from vitrail.errors import first_line
from vitrail.export_documents import Int8Document
from vitrail.exporting.calibration import read_calibration_pixels
from vitrail.exporting.model_card import write_model_card
from vitrail.exporting.onnx_format import TIMING_IMAGES, build_onnx_model, import_exporter, time_in_turns
from vitrail.exporting.openvino_classifier import OpenvinoClassifier
from vitrail.exporting.openvino_file import DOCUMENT, SECTION
from vitrail.exporting.openvino_runtime import OpenvinoSession, get_core, import_nncf, import_openvino
from vitrail.exporting.preparation import prepare_document
from vitrail.exporting.probes import Probes
from vitrail.exporting.program import LOGITS, ProgramOptions, RunProgram
from vitrail.exporting.program_document import fill_load_code, program_document
from vitrail.exporting.program_format import ProgramFormat

LOAD_CODE = (
    'import openvino; model = openvino.Core().compile_model("{file}", "CPU"OPTIONS); '
    'logits = model({inputs})["logits"]  # pixels: {dtype} (B, {channels}, {height}, {width})'
)
FLOAT32 = ', {{"INFERENCE_PRECISION_HINT": "f32"}}'  # without it OpenVINO computes in bf16 where the processor has it


class OpenvinoFormat(ProgramFormat):
    """NAME.xml and NAME.bin; `vitrail predict`, `evaluate` and `serve` run NAME.xml."""

    suffix, weights_suffix = ".xml", ".bin"

    def __init__(self, classifier: Classifier, options: ProgramOptions, probes: Probes):
        super().__init__(classifier, options, probes)
        onnx_model = build_onnx_model(classifier, options).SerializeToString()
        self.float_model = get_core().read_model(onnx_model)
        self.model, self.calibrated_on = self.float_model, ""
        if options.int8:
            pixels, self.calibrated_on = read_calibration_pixels(classifier, probes)
            self.model = quantize_static(get_core().read_model(onnx_model), pixels)
        self.runner = self.run_in_memory(self.model, None if options.int8 else "f32")

    def run_in_memory(self, model: Any, precision: str | None) -> OpenvinoClassifier:
        session = OpenvinoSession(lambda: model, self.options.inputs, self.options.outputs, precision=precision)
        return OpenvinoClassifier.in_memory(session, self.classifier)

    def run(self, pixels_BCHW: Tensor, output: str, target_BY: Tensor | None = None) -> Tensor:
        return self.runner.run(pixels_BCHW, output, target_BY)

    def measure_int8(self, pixels_BCHW: Tensor) -> Int8Document | None:
        float_runner = self.run_in_memory(self.float_model, None)
        times = time_in_turns([float_runner.logits, self.runner.logits], pixels_BCHW[:TIMING_IMAGES])
        return {
            "float_bytes": weight_bytes(self.float_model),
            "bytes": weight_bytes(self.model),
            "float_milliseconds": times[0],
            "milliseconds": times[1],
            "calibrated_on": self.calibrated_on,
        }

    def write(self, path: Path, name: str, exported: dict[str, Any]) -> None:
        save_graph(self.model, path)  # for the weights, whose checksum is in the graph
        digest = hashlib.sha256(self.model_file(path).read_bytes()).hexdigest()
        program = program_document(self.classifier, self.options.unlike)
        options = "" if self.options.int8 else FLOAT32
        load_code = fill_load_code(LOAD_CODE.replace("OPTIONS", options), name, self.classifier, exported)
        entries = {
            DOCUMENT: json.dumps({**program, "exported": exported, "sha256": digest}, ensure_ascii=False),
            "preparation": json.dumps(prepare_document(self.classifier), ensure_ascii=False),
            "class_names": json.dumps(self.classifier.classes, ensure_ascii=False),
            "model_card": write_model_card(self.classifier, "openvino", load_code, exported, is_program=True),
        }
        for key, text in entries.items():
            self.model.set_rt_info(text, [SECTION, key])
        save_graph(self.model, path)

    @classmethod
    def check_packages(cls, *, int8: bool) -> None:
        import_nncf() if int8 else import_openvino()
        import_exporter()

    def read_back(self, path: Path) -> RunProgram:
        return OpenvinoClassifier.load(path).run


def save_graph(model: Any, path: Path) -> None:
    """Writes a graph, and its weights into a .bin file beside it; raises `OSError` if the disk refuses."""
    lower = path.with_suffix(OpenvinoFormat.suffix)  # OpenVINO refuses a suffix in capital letters
    try:
        import_openvino().save_model(model, lower, compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO has no other error for a full disk
        raise OSError(first_line(error)) from None
    lower.replace(path)


def quantize_static(model: Any, pixels: list[Tensor]) -> Any:
    """Returns an OpenVINO model whose products have 8-bit integers, with scales that fit the pixels (1, C, H, W).

    The patch projection and the last product stay float: in 8 bits they cause most of the error. The scale of an
    activation fits its smallest and its largest value on all of the pixels. SmoothQuant stays off: with it, the logits
    of these graphs depend on where an image is in its batch (docs/log.md has the figures).
    """
    nncf = import_nncf()
    advanced = nncf.AdvancedQuantizationParameters(
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
        activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX,
    )
    # in a thread of its own, since NNCF deletes cores in an order that breaks the thread's signal handlers (`get_core`)
    with silence_output(), ThreadPoolExecutor(1) as thread:
        return thread.submit(
            nncf.quantize,
            model,
            nncf.Dataset([each.numpy() for each in pixels]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(pixels),
            ignored_scope=nncf.IgnoredScope(names=list_float_operations(model)),
            advanced_parameters=advanced,
        ).result()


def list_float_operations(model: Any) -> list[str]:
    """Returns the names of the patch projection, and of the last layer (a product with weights) if there is one."""
    node = next(result for result in model.get_results() if LOGITS in result.input_value(0).get_names())
    while node.get_type_name() != "MatMul" and node.get_input_size():
        node = node.input_value(0).get_node()
    last = [node.get_friendly_name()] if node.get_type_name() == "MatMul" else []
    operations = model.get_ops()
    return [each.get_friendly_name() for each in operations if each.get_type_name() == "Convolution"] + last


def weight_bytes(model: Any) -> int:
    """Returns the bytes of a graph's constants."""
    constants = (each for each in model.get_ops() if each.get_type_name() == "Constant")
    return sum(each.get_byte_size() for each in constants)
