"""A process that runs one model, one thing at a time: reads a message, answers it, until the server has gone."""

import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.errors import UsageError, VitrailError
from vitrail.machine import pick_device
from vitrail.serving.messages import receive_message, send_message
from vitrail.serving.predictor import Predictor, best_batch_size

Answer = tuple[dict[str, Any], bytes]
MAX_TRIED_BATCH_SIZE = 32  # the longest batch that is tried, unless one is asked for


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker is for: the model by its number, and how it runs it."""

    model: int
    threads: int
    device: str | None = None
    graph: str | None = None  # an ONNX file to run instead of the ViT
    batch: int | None = None  # the longest batch; measured where it is None
    explains: bool = False  # rather than predicts


def run_worker(connection: socket.socket, classifier: Classifier | None, config: WorkerConfig) -> None:
    """Warms up, says hello, and answers until the other side has gone; `classifier` is None for a model in a graph."""
    send_message(connection, {"pid": os.getpid()})
    torch.set_num_threads(config.threads)
    try:
        predictor = Predictor(open_classifier(classifier, config))
        hello = make_hello(predictor, config)
    except VitrailError as error:
        send_message(connection, error_document(error))
        return
    send_message(connection, hello)
    with connection.makefile("rb") as requests:
        while (message := receive_message(requests)) is not None:
            document, parts = answer_request(predictor, *message)
            send_message(connection, document, [parts])


def open_classifier(classifier: Classifier | None, config: WorkerConfig) -> BaseClassifier:
    """The classifier in the runtime and on the device that the duty names."""
    device = pick_device(config.device)
    if config.graph is not None:
        from vitrail.exporting.onnx_classifier import OnnxClassifier

        return OnnxClassifier.load(config.graph, threads=config.threads, device=str(device))
    assert classifier is not None
    return classifier.to(device)


def make_hello(predictor: Predictor, config: WorkerConfig) -> dict[str, Any]:
    """What the worker says once it is warm."""
    rates = {} if config.batch else predictor.measure_rates(MAX_TRIED_BATCH_SIZE)
    batch = config.batch or best_batch_size(rates)
    predictor.warm_up(batch)
    if config.explains:
        predictor.warm_up_explanation()
    return {"outputs": predictor.outputs, "batch": batch, "rates": rates}


def answer_request(predictor: Predictor, document: dict[str, Any], parts: bytes) -> Answer:
    """The answer to one message; what goes wrong is said, and the process lives on."""
    started = time.perf_counter()
    try:
        answer, found = TASKS[document["do"]](predictor, document, parts)
    except VitrailError as error:
        return error_document(error), b""
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__} while the model ran", "wrong_use": False}, b""
    return {**answer, "seconds": time.perf_counter() - started}, found


def error_document(error: VitrailError) -> dict[str, Any]:
    """An error as a message."""
    return {"error": str(error), "wrong_use": isinstance(error, UsageError)}


def answer_logits(predictor: Predictor, document: dict[str, Any], parts: bytes) -> Answer:
    """A batch of pixels -> float32 logits."""
    found = predictor.logits(read_tensor(document["shape"], parts)).numpy()
    return {"outputs": found.shape[1]}, np.ascontiguousarray(found, np.float32).tobytes()


def answer_explanation(predictor: Predictor, document: dict[str, Any], parts: bytes) -> Answer:
    """One image's pixels -> its explanation, and a picture of it."""
    target = document["target"]
    options = document["options"]
    if options.get("query"):
        options["query"] = tuple(options["query"])
    found, picture = predictor.explain(
        read_tensor(document["shape"], parts)[0],
        tuple(target) if isinstance(target, list) else target,
        options,
        document["picture"],
    )
    return {"explanation": found}, picture


def answer_page(predictor: Predictor, document: dict[str, Any], parts: bytes) -> Answer:
    """The page at /."""
    from vitrail.serving.web_page import make_page

    return {}, make_page(predictor.classifier, document["name"], document["explains"])


def answer_graph(predictor: Predictor, document: dict[str, Any], parts: bytes) -> Answer:
    """Writes the model as an ONNX file, and says how fast torch and ONNX Runtime run it."""
    from vitrail.exporting.onnx_classifier import OnnxClassifier
    from vitrail.serving.onnx_cache import onnx_cache_name, write_onnx

    assert isinstance(predictor.classifier, Classifier)
    path = Path(document["folder"]) / onnx_cache_name(predictor.classifier)
    if not path.exists():
        write_onnx(predictor.classifier, path)
    device = str(predictor.classifier.device)
    other = Predictor(OnnxClassifier.load(path, threads=torch.get_num_threads(), device=device))
    most = document["batch"] or MAX_TRIED_BATCH_SIZE
    return {
        "path": str(path),
        "rates": {"torch": predictor.measure_rates(most), "onnxruntime": other.measure_rates(most)},
    }, b""


TASKS: dict[str, Callable[[Predictor, dict[str, Any], bytes], Answer]] = {
    "logits": answer_logits,
    "explain": answer_explanation,
    "page": answer_page,
    "graph": answer_graph,
}


def read_tensor(shape: list[int], parts: bytes) -> Tensor:
    """Bytes -> uint8 pixels of this shape."""
    return torch.frombuffer(bytearray(parts), dtype=torch.uint8).view(shape)
