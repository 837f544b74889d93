"""A classifier -> an ONNX file with all that using it takes: weights, classes, preprocessing, temperature, card."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.console import silence_output
from vitrail.errors import UsageError, VitrailError
from vitrail.exporting.int8 import quantize
from vitrail.exporting.model_card import write_model_card
from vitrail.exporting.onnx_classifier import MAX_BYTES, OnnxClassifier, create_session, import_onnx, weights_digest
from vitrail.exporting.program import ProgramOptions
from vitrail.exporting.result import ExportResult, new_path
from vitrail.exporting.trace import trace_program
from vitrail.exporting.verify import Probes, Verification, check_tolerance, compare_program, verify_extra_outputs
from vitrail.files import write_atomically
from vitrail.weights.artifact import Artifact

OPSET = 20  # the first with LayerNormalization, Gelu and all else that a ViT is made of
LOADS = (
    'import onnxruntime; session = onnxruntime.InferenceSession("{file}"); '
    '(logits,) = session.run(["logits"], {{"pixels": pixels}})  # pixels: uint8 (B, {channels}, {height}, {width})'
)
ROUNDS, TIMED = 7, 8  # of timing, and images in each


def export_onnx(
    classifier: Classifier,
    out: str | Path,
    extras: ProgramOptions,
    check: Probes,
    tick: Callable[[int], object] = lambda n: None,
) -> ExportResult:
    """Writes an ONNX file that answers as the classifier does, or nothing.

    Raises `UsageError` where `out` exists or a package is missing, `VitrailError` with the figures where the program
    does not agree.
    """
    path = new_path(out, ".onnx")
    model, agreed, made = proven_model(classifier, extras, check, tick)
    write_atomically(path, lambda aside: write_model(aside, model, classifier, check))
    return ExportResult(path, "onnx", extras.outputs, agreed, path.stat().st_size, made)


def proven_model(
    classifier: Classifier, extras: ProgramOptions, check: Probes, tick: Callable[[int], object] = lambda n: None
) -> tuple[Any, Verification, dict[str, Any]]:
    """The described model, how far it agrees, and what int8 brought; raises `VitrailError` if it does not agree."""
    extras.check(classifier)
    whole = build_onnx_model(classifier, extras)
    model = quantize(whole) if extras.int8 else whole
    runner = classifier_in_memory(model, classifier)
    agreed = compare_program(classifier, runner.logits, check, tick)
    check_tolerance(agreed, exact=not extras.int8)
    agreed = replace(agreed, other_differences=verify_extra_outputs(classifier, runner.run, check, extras))
    made = gains(whole, model, classifier, check) if extras.int8 else {}
    add_metadata(model, classifier, {**vars(extras), **agreed.to_json(), **made})
    return model, agreed, made


def build_onnx_model(classifier: Classifier, extras: ProgramOptions) -> Any:
    """The classifier as an ONNX model, for a batch of any size."""
    import_onnx()
    try:
        import onnxscript  # noqa: F401 - torch's exporter asks for it
    except ImportError:
        raise UsageError("onnxscript is not installed", "pip install 'vitrail[export]'") from None
    weights = sum(4 * parameter.numel() for parameter in classifier.vit.parameters())
    if weights > MAX_BYTES - (64 << 20):
        raise VitrailError(f"the weights take {weights / 1e9:.1f} GB, one ONNX file holds 2", "use --format torch")
    with silence_output():
        made = torch.onnx.export(
            trace_program(classifier, extras), (), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=list(extras.inputs), output_names=list(extras.outputs),
        )  # fmt: skip
    assert made is not None
    model = made.model_proto
    tidy(model)
    return model


def tidy(model: Any) -> None:
    """Takes out what the exporter leaves for its own sake: paths of its sources, shapes that quantising trips over."""
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for each in (*model.graph.input, *model.graph.output):
        del each.metadata_props[:]
        each.type.tensor_type.shape.dim[0].dim_param = "batch"


def add_metadata(model: Any, classifier: Classifier, exported: dict[str, Any]) -> None:
    """Puts into the model what it is: one JSON document under the key `vitrail`, and a card for people."""
    prepare = classifier.preprocess
    artefact = Artifact(classifier.vit.config, classifier.classes, prepare, classifier.temperature, classifier.origin)
    document = {**artefact.to_json(), "exported": exported, "sha256": weights_digest(model)}
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = "vitrail", json.dumps(document, ensure_ascii=False)
    height, width = prepare.image_size
    loads = LOADS.format(file="model.onnx", channels=prepare.channels, height=height, width=width)
    model.doc_string = write_model_card(classifier, "onnx", loads, exported)
    model.producer_name = "vitrail"


def classifier_in_memory(model: Any, classifier: Classifier) -> OnnxClassifier:
    """The model in ONNX Runtime, before there is a file."""
    session = create_session(model.SerializeToString(), Path("the model"), None, "cpu")
    return OnnxClassifier(session, classifier.classes, classifier.preprocess, classifier.temperature)


def write_model(path: Path, model: Any, classifier: Classifier, check: Probes) -> None:
    """Writes the file, reads it back as anyone will, and asks both once more; raises `VitrailError` if they differ."""
    path.write_bytes(model.SerializeToString())
    pixels, _ = next(check.batches(classifier))
    with torch.inference_mode():
        if not torch.equal(
            OnnxClassifier.load(path).logits(pixels), classifier_in_memory(model, classifier).logits(pixels)
        ):
            raise VitrailError(f"{path} does not read back as what was written", "nothing was written")


def gains(whole: Any, small: Any, classifier: Classifier, check: Probes) -> dict[str, Any]:
    """What int8 brought: bytes and milliseconds an image, of the float model and of the small one, taken in turns."""
    pixels, _ = next(check.batches(classifier))
    took: dict[str, list[float]] = {"float_milliseconds": [], "milliseconds": []}
    answers = dict(zip(took, [classifier_in_memory(each, classifier).logits for each in (whole, small)], strict=True))
    some = pixels[:TIMED]
    for _ in range(ROUNDS):
        for name, answer in answers.items():
            took[name].append(milliseconds(answer, some) / len(some))
    times = {name: median(values) for name, values in took.items()}
    return {"float_bytes": whole.ByteSize(), "bytes": small.ByteSize(), **times}


def milliseconds(answer: Callable[[Tensor], Tensor], pixels: Tensor) -> float:
    """How long one batch takes."""
    start = time.perf_counter()
    answer(pixels)
    return 1e3 * (time.perf_counter() - start)
