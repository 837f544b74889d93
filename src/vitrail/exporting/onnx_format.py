"""A classifier -> an ONNX file with all that using it takes: weights, classes, preprocessing, temperature, card."""

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.errors import UsageError, VitrailError
from vitrail.exporting.program import Extras
from vitrail.exporting.int8 import quantised
from vitrail.exporting.model_card import write_model_card
from vitrail.exporting.verify import Agreed, Check, compared, demand, demand_extras
from vitrail.exporting.onnx_classifier import LARGEST, OnnxClassifier, digest, onnx_packages, session_of
from vitrail.exporting.result import Shipped, fresh
from vitrail.exporting.trace import traced
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
    extras: Extras,
    check: Check,
    tick: Callable[[int], object] = lambda n: None,
) -> Shipped:
    """Writes an ONNX file that answers as the classifier does, or nothing.

    Raises `UsageError` where `out` exists or a package is missing, `VitrailError` with the figures where the program
    does not agree.
    """
    path = fresh(out, ".onnx")
    model, agreed, made = proven_model(classifier, extras, check, tick)
    write_atomically(path, lambda aside: write_model(aside, model, classifier, check))
    return Shipped(path, "onnx", extras.outputs, agreed, path.stat().st_size, made)


def proven_model(
    classifier: Classifier, extras: Extras, check: Check, tick: Callable[[int], object] = lambda n: None
) -> tuple[Any, Agreed, dict[str, Any]]:
    """The described model, how far it agrees, and what int8 brought; raises `VitrailError` if it does not agree."""
    extras.check(classifier)
    whole = onnx_model(classifier, extras)
    model = quantised(whole) if extras.int8 else whole
    runner = running(model, classifier)
    agreed = compared(classifier, runner.logits, check, tick)
    demand(agreed, exact=not extras.int8)
    agreed = replace(agreed, others=demand_extras(classifier, runner.run, check, extras))
    made = gains(whole, model, classifier, check) if extras.int8 else {}
    describe(model, classifier, {**vars(extras), **agreed.to_json(), **made})
    return model, agreed, made


def onnx_model(classifier: Classifier, extras: Extras) -> Any:
    """The classifier as an ONNX model, for a batch of any size."""
    onnx_packages()
    try:
        import onnxscript  # noqa: F401 - torch's exporter asks for it
    except ImportError:
        raise UsageError("onnxscript is not installed", "pip install 'vitrail[export]'") from None
    weights = sum(4 * parameter.numel() for parameter in classifier.vit.parameters())
    if weights > LARGEST - (64 << 20):
        raise VitrailError(f"the weights take {weights / 1e9:.1f} GB, one ONNX file holds 2", "use --format torch")
    with quiet():
        made = torch.onnx.export(
            traced(classifier, extras), (), dynamo=True, opset_version=OPSET, verbose=False,
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


def describe(model: Any, classifier: Classifier, exported: dict[str, Any]) -> None:
    """Puts into the model what it is: one JSON document under the key `vitrail`, and a card for people."""
    prepare = classifier.preprocess
    artefact = Artifact(classifier.vit.config, classifier.classes, prepare, classifier.temperature, classifier.origin)
    document = {**artefact.to_json(), "exported": exported, "sha256": digest(model)}
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = "vitrail", json.dumps(document, ensure_ascii=False)
    height, width = prepare.image_size
    loads = LOADS.format(file="model.onnx", channels=prepare.channels, height=height, width=width)
    model.doc_string = write_model_card(classifier, "onnx", loads, exported)
    model.producer_name = "vitrail"


def running(model: Any, classifier: Classifier) -> OnnxClassifier:
    """The model in ONNX Runtime, before there is a file."""
    session = session_of(model.SerializeToString(), Path("the model"), None, "cpu")
    return OnnxClassifier(session, classifier.classes, classifier.preprocess, classifier.temperature)


def write_model(path: Path, model: Any, classifier: Classifier, check: Check) -> None:
    """Writes the file, reads it back as anyone will, and asks both once more; raises `VitrailError` if they differ."""
    path.write_bytes(model.SerializeToString())
    pixels, _ = next(check.batches(classifier))
    with torch.inference_mode():
        if not torch.equal(OnnxClassifier.load(path).logits(pixels), running(model, classifier).logits(pixels)):
            raise VitrailError(f"{path} does not read back as what was written", "nothing was written")


def gains(whole: Any, small: Any, classifier: Classifier, check: Check) -> dict[str, Any]:
    """What int8 brought: bytes and milliseconds an image, of the float model and of the small one, taken in turns."""
    pixels, _ = next(check.batches(classifier))
    took: dict[str, list[float]] = {"float_milliseconds": [], "milliseconds": []}
    answers = dict(zip(took, [running(each, classifier).logits for each in (whole, small)], strict=True))
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


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, torch's exporter keeps its progress and the warnings about its own workings to itself."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(level)
