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
from vitrail.serving.predictor import Predictor, best_batch
from vitrail.serving.wire import receive, send

Answer = tuple[dict[str, Any], bytes]
MOST = 32  # the longest batch that is tried, unless one is asked for


@dataclass(frozen=True)
class Duty:
    """What a worker is for: the model by its number, and how it runs it."""

    model: int
    threads: int
    device: str | None = None
    graph: str | None = None  # an ONNX file to run instead of the ViT
    batch: int | None = None  # the longest batch; measured where it is None
    explains: bool = False  # rather than predicts


def work(connection: socket.socket, classifier: Classifier | None, duty: Duty) -> None:
    """Warms up, says hello, and answers until the other side has gone; `classifier` is None for a model in a graph."""
    send(connection, {"pid": os.getpid()})
    torch.set_num_threads(duty.threads)
    try:
        predictor = Predictor(opened(classifier, duty))
        hello = introduced(predictor, duty)
    except VitrailError as error:
        send(connection, failed(error))
        return
    send(connection, hello)
    with connection.makefile("rb") as requests:
        while (message := receive(requests)) is not None:
            document, parts = answered(predictor, *message)
            send(connection, document, [parts])


def opened(classifier: Classifier | None, duty: Duty) -> BaseClassifier:
    """The classifier in the runtime and on the device that the duty names."""
    device = pick_device(duty.device)
    if duty.graph is not None:
        from vitrail.exporting.onnx_classifier import OnnxClassifier

        return OnnxClassifier.load(duty.graph, threads=duty.threads, device=str(device))
    assert classifier is not None
    return classifier.to(device)


def introduced(predictor: Predictor, duty: Duty) -> dict[str, Any]:
    """What the worker says once it is warm."""
    rates = {} if duty.batch else predictor.rates(MOST)
    batch = duty.batch or best_batch(rates)
    predictor.warm(batch)
    if duty.explains:
        predictor.warm_explanation()
    return {"outputs": predictor.outputs, "batch": batch, "rates": rates}


def answered(predictor: Predictor, document: dict[str, Any], parts: bytes) -> Answer:
    """The answer to one message; what goes wrong is said, and the process lives on."""
    started = time.perf_counter()
    try:
        answer, found = TASKS[document["do"]](predictor, document, parts)
    except VitrailError as error:
        return failed(error), b""
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__} while the model ran", "wrong_use": False}, b""
    return {**answer, "seconds": time.perf_counter() - started}, found


def failed(error: VitrailError) -> dict[str, Any]:
    """An error as a message."""
    return {"error": str(error), "wrong_use": isinstance(error, UsageError)}


def logits(predictor: Predictor, document: dict[str, Any], parts: bytes) -> Answer:
    """A batch of pixels -> float32 logits."""
    found = predictor.logits(tensor(document["shape"], parts)).numpy()
    return {"outputs": found.shape[1]}, np.ascontiguousarray(found, np.float32).tobytes()


def explanation(predictor: Predictor, document: dict[str, Any], parts: bytes) -> Answer:
    """One image's pixels -> its explanation, and a picture of it."""
    target = document["target"]
    options = document["options"]
    if options.get("query"):
        options["query"] = tuple(options["query"])
    found, picture = predictor.explain(
        tensor(document["shape"], parts)[0],
        tuple(target) if isinstance(target, list) else target,
        options,
        document["picture"],
    )
    return {"explanation": found}, picture


def page(predictor: Predictor, document: dict[str, Any], parts: bytes) -> Answer:
    """The page at /."""
    from vitrail.serving.page import page_of

    return {}, page_of(predictor.classifier, document["name"], document["explains"])


def graph(predictor: Predictor, document: dict[str, Any], parts: bytes) -> Answer:
    """Writes the model as an ONNX file, and says how fast torch and ONNX Runtime run it."""
    from vitrail.exporting.onnx_classifier import OnnxClassifier
    from vitrail.serving.graph import graph_name, write_graph

    assert isinstance(predictor.classifier, Classifier)
    path = Path(document["folder"]) / graph_name(predictor.classifier)
    if not path.exists():
        write_graph(predictor.classifier, path)
    device = str(predictor.classifier.device)
    other = Predictor(OnnxClassifier.load(path, threads=torch.get_num_threads(), device=device))
    most = document["batch"] or MOST
    return {"path": str(path), "rates": {"torch": predictor.rates(most), "onnxruntime": other.rates(most)}}, b""


TASKS: dict[str, Callable[[Predictor, dict[str, Any], bytes], Answer]] = {
    "logits": logits,
    "explain": explanation,
    "page": page,
    "graph": graph,
}


def tensor(shape: list[int], parts: bytes) -> Tensor:
    """Bytes -> uint8 pixels of this shape."""
    return torch.frombuffer(bytearray(parts), dtype=torch.uint8).view(shape)
