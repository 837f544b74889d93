"""A process that runs one model, one thing at a time: reads a message, answers it, until the server has gone."""

import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.errors import UsageError, VitrailError
from vitrail.machine import pick_device
from vitrail.serve.predictor import Predictor, best_batch
from vitrail.serve.wire import receive, send

Answer = tuple[dict[str, Any], bytes]
MOST = 32  # the longest batch that is tried, unless one is asked for


@dataclass(frozen=True)
class Duty:
    """What a worker is for: the model by its number, and how it runs it."""

    model: int
    threads: int
    device: str | None = None
    explains: bool = False  # rather than predicts
    batch: int | None = None  # the longest batch; measured where it is None


def work(connection: socket.socket, classifier: Classifier, duty: Duty) -> None:
    """Warms up, says hello, and answers until the other side has gone."""
    torch.set_num_threads(duty.threads)
    try:
        predictor = Predictor(classifier.to(pick_device(duty.device)))
        hello = introduced(predictor, duty)
    except VitrailError as error:
        send(connection, failed(error))
        return
    send(connection, hello)
    with connection.makefile("rb") as requests:
        while (message := receive(requests)) is not None:
            document, parts = answered(predictor, *message)
            send(connection, document, [parts])


def introduced(predictor: Predictor, duty: Duty) -> dict[str, Any]:
    """What the worker says once it is warm."""
    rates = {} if duty.batch else predictor.rates(MOST)
    batch = duty.batch or best_batch(rates)
    predictor.warm(batch)
    if duty.explains:
        predictor.warm_explanation()
    return {
        "pid": os.getpid(),
        "outputs": predictor.outputs,
        "batch": batch,
        "rates": rates,
        "device": str(predictor.classifier.device),
    }


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
    target = tuple(document["target"]) if isinstance(document["target"], list) else document["target"]
    options = document["options"]
    if options.get("query"):
        options["query"] = tuple(options["query"])
    found, picture = predictor.explain(tensor(document["shape"], parts)[0], target, options, document["picture"])
    return {"explanation": found}, picture


def page(predictor: Predictor, document: dict[str, Any], parts: bytes) -> Answer:
    """The page at /."""
    from vitrail.serve.page import page_of

    return {}, page_of(predictor.classifier, document["name"])


TASKS: dict[str, Callable[[Predictor, dict[str, Any], bytes], Answer]] = {
    "logits": logits,
    "explain": explanation,
    "page": page,
}


def tensor(shape: list[int], parts: bytes) -> Tensor:
    """Bytes -> uint8 pixels of this shape."""
    return torch.frombuffer(bytearray(parts), dtype=torch.uint8).view(shape)
