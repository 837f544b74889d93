"""A classifier -> an ONNX file with all that using it takes: weights, classes, preprocessing, temperature, card."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import torch

from vitrail.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.export.graph import Program, traced
from vitrail.export.running import LOGITS, PIXELS, digest, onnx_packages
from vitrail.weights.artefact import Artefact

OPSET = 20  # the first with LayerNormalization, Gelu and all else that a ViT is made of


def onnx_model(program: Program) -> Any:
    """The program as an ONNX model, for a batch of any size."""
    onnx_packages()
    try:
        import onnxscript  # noqa: F401 - torch's exporter asks for it
    except ImportError:
        raise UsageError("onnxscript is not installed", "pip install 'vitrail[export]'") from None
    names = [LOGITS, "attention"] if program.attention else [LOGITS]
    with quiet():
        made = torch.onnx.export(
            traced(program), (), dynamo=True, opset_version=OPSET, input_names=[PIXELS], output_names=names,
            verbose=False,
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
        each.type.tensor_type.shape.dim[0].dim_param = "batch"


def describe(model: Any, classifier: Classifier, exported: dict[str, Any], card: str) -> None:
    """Puts into the model what it is: one JSON document under the key `vitrail`, and a card for people."""
    artefact = Artefact(
        classifier.vit.config, classifier.classes, classifier.preprocess, classifier.temperature, classifier.origin
    )
    document = {**artefact.to_json(), "exported": exported, "sha256": digest(model)}
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = "vitrail", json.dumps(document, ensure_ascii=False)
    model.doc_string = card
    model.producer_name = "vitrail"


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
