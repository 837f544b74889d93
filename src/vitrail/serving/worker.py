"""The worker process: runs one model and handles one message at a time, until the server closes the connection."""

import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.errors import UsageError, VitrailError
from vitrail.files import mark_used
from vitrail.loading import load_program
from vitrail.machine import pick_device
from vitrail.serving.messages import receive_message, send_message
from vitrail.serving.predictor import Predictor

Answer = tuple[dict[str, Any], bytes]
PAGE_NICENESS = 10
MAX_MEASURED_BATCH_SIZE = 32  # largest batch size to measure, unless the settings have a maximum


@dataclass(frozen=True)
class WorkerConfig:
    """Which model a worker runs, and how."""

    model_index: int
    threads: int
    device: str | None = None
    program_path: str | None = None  # an exported file to run instead of the ViT
    batch_size: int = 1  # maximum batch size
    task: Literal["predict", "explain", "decode"] = "predict"


def run_worker(connection: socket.socket, classifier: Classifier | None, config: WorkerConfig) -> None:
    """Warms up, sends a hello message, and answers messages; `classifier` is None for a model from an exported file."""
    send_message(connection, {"pid": os.getpid()})
    torch.set_num_threads(config.threads)
    try:
        predictor = Predictor(open_classifier(classifier, config))
        hello = make_hello(predictor, config)
    except VitrailError as error:
        send_message(connection, make_error_document(error))
        return
    send_message(connection, hello)
    with connection.makefile("rb") as requests:
        while (message := receive_message(requests)) is not None:
            document, payload = answer_request(predictor, *message)
            send_message(connection, document, [payload])


def open_classifier(classifier: Classifier | None, config: WorkerConfig) -> BaseClassifier:
    """Returns the classifier with the backend and on the device of the config."""
    if config.program_path is not None:
        return load_program(config.program_path, program_device(config), config.threads)
    assert classifier is not None
    return classifier.to(pick_device(config.device))


def program_device(config: WorkerConfig) -> str:
    """Returns the device of an exported file: the requested one, else the best that its runtime has."""
    if str(config.program_path).lower().endswith(".xml"):
        return config.device or "cpu"
    return str(pick_device(config.device))


def make_hello(predictor: Predictor, config: WorkerConfig) -> dict[str, Any]:
    """Warms up and returns the hello message, with measured times: pairs of batch size and seconds, or of an explainer
    the seconds of the parts of an explanation.
    """
    if config.task == "explain":
        return {"pass_times": asdict(predictor.measure_passes())}
    sizes = sorted({1, config.batch_size})
    times = [[size, min(predictor.warm_up(size) for _ in range(2))] for size in sizes]
    return {"outputs": predictor.output_width, "seconds_by_size": times}


def answer_request(predictor: Predictor, document: dict[str, Any], payload: bytes) -> Answer:
    """Returns the answer to one message; an error becomes an answer too, and the process continues."""
    started = time.perf_counter()
    try:
        answer, answer_payload = OPERATIONS[document["operation"]](predictor, document, payload)
    except VitrailError as error:
        return make_error_document(error), b""
    except Exception as error:
        traceback.print_exc()
        return {"error": f"the model failed with {type(error).__name__}", "is_usage_error": False}, b""
    return {**answer, "seconds": time.perf_counter() - started}, answer_payload


def make_error_document(error: VitrailError) -> dict[str, Any]:
    return {"error": str(error), "is_usage_error": isinstance(error, UsageError)}


def answer_logits(predictor: Predictor, document: dict[str, Any], payload: bytes) -> Answer:
    """Computes the float32 logits of a batch of pixels, and their distances if they are fitted."""
    pixels_BCHW = read_tensor(document["shape"], payload, predictor.classifier.preprocess.dtype)
    rows = predictor.rows(pixels_BCHW).numpy()
    return {"outputs": rows.shape[1]}, np.ascontiguousarray(rows, np.float32).tobytes()


def answer_explanation(predictor: Predictor, document: dict[str, Any], payload: bytes) -> Answer:
    """Explains one image; the payload of the answer is the picture."""
    target = document["target"]
    options = document["options"]
    if options.get("query"):
        options["query"] = tuple(options["query"])
    explanation, picture = predictor.explain(
        read_tensor(document["shape"], payload, predictor.classifier.preprocess.dtype)[0],
        tuple(target) if isinstance(target, list) else target,
        options,
        document["picture"],
    )
    return {"explanation": explanation}, picture


def answer_page(predictor: Predictor, document: dict[str, Any], payload: bytes) -> Answer:
    """Makes the web page, with a low priority: it is made while the server answers requests."""
    os.nice(PAGE_NICENESS)
    from vitrail.serving.web_page import make_page

    return {}, make_page(predictor.classifier, document["name"], document["can_explain"])


def answer_rates(predictor: Predictor, document: dict[str, Any], payload: bytes) -> Answer:
    """Measures images per second by batch size."""
    return {"rates": list(predictor.measure_rates(MAX_MEASURED_BATCH_SIZE).items())}, b""


def answer_onnx(predictor: Predictor, document: dict[str, Any], payload: bytes) -> Answer:
    """Exports the model to ONNX, unless the file exists; measures the rates of torch and ONNX Runtime."""
    from vitrail.exporting.onnx_classifier import OnnxClassifier
    from vitrail.serving.onnx_cache import onnx_cache_name, write_onnx

    assert isinstance(predictor.classifier, Classifier)
    path = Path(document["folder"]) / onnx_cache_name(predictor.classifier)
    if not path.exists():
        write_onnx(predictor.classifier, path)
    mark_used(path)
    device = str(predictor.classifier.device)
    onnx_predictor = Predictor(OnnxClassifier.load(path, threads=torch.get_num_threads(), device=device))
    max_batch_size = document["max_batch_size"] or MAX_MEASURED_BATCH_SIZE
    rates = {
        "torch": list(predictor.measure_rates(max_batch_size).items()),
        "onnxruntime": list(onnx_predictor.measure_rates(max_batch_size).items()),
    }
    return {"path": str(path), "rates": rates}, b""


OPERATIONS: dict[str, Callable[[Predictor, dict[str, Any], bytes], Answer]] = {
    "logits": answer_logits,
    "explain": answer_explanation,
    "page": answer_page,
    "rates": answer_rates,
    "onnx": answer_onnx,
}


def read_tensor(shape: list[int], payload: bytes, dtype: torch.dtype) -> Tensor:
    """Returns the payload as pixels of this shape."""
    return torch.frombuffer(bytearray(payload), dtype=dtype).view(shape)
