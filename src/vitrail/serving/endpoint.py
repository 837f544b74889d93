"""A model that is served: what is known of it, its two queues, and the way from image files to answers."""

import asyncio
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.classifier import Classifier
from vitrail.data.decode import ImageError
from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.model import ViTConfig
from vitrail.serving.decoding import ImageDecoder, Pixels, fit_all
from vitrail.serving.errors import RequestError, bad_request, internal_error, not_found, unreadable_image
from vitrail.serving.fork_server import ForkServer, ModelSource
from vitrail.serving.logs import log
from vitrail.serving.metrics import Metrics
from vitrail.serving.scheduler import Item, Scheduler
from vitrail.serving.settings import Settings
from vitrail.serving.worker import WorkerConfig
from vitrail.serving.worker_pool import MAX_SETUP_S, Worker, WorkerCrashed, WorkerPool, error_from

VERSION = "1"
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)  # a name is a part of an address
RESERVED_NAMES = ("stats",)  # parts of addresses that mean something else


@dataclass(frozen=True)
class ModelInfo:
    """What a server knows of a model without running it."""

    name: str
    number: int
    source: ModelSource
    config: ViTConfig
    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: float
    origin: dict[str, Any]
    graph: str | None  # where the model's ONNX file is, or may be kept

    @property
    def outputs(self) -> list[str]:
        """The outputs of the protocol's infer."""
        return ["logits", "probabilities"] if self.classes else ["features"]


def describe_model(name: str, number: int, source: ModelSource, classifier: Classifier | None) -> ModelInfo:
    """What is known of a model: from its classifier, or from its ONNX file."""
    if classifier is None:
        from vitrail.exporting.onnx_file import parse_onnx, read_onnx_bytes

        found, _ = parse_onnx(read_onnx_bytes(Path(source.model)), Path(source.model))
        config, graph = found.config, source.model
        return ModelInfo(
            name, number, source, config, found.classes, found.preprocess, found.temperature, found.origin, graph
        )
    return ModelInfo(
        name, number, source, classifier.vit.config, classifier.classes, classifier.preprocess,
        classifier.temperature, classifier.origin, None,
    )  # fmt: skip


def choose_names(models: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names to serve models under: those given, else what their paths end in; raises `UsageError` for a bad one."""
    if names and len(names) != len(models):
        raise UsageError(
            f"there are {len(names)} names for {len(models)} models", "give --name once for each, in order"
        )
    names = list(names) or [
        re.sub(r"[^\w.-]", "-", stem(model), flags=re.ASCII).strip("-.") or "model" for model in models
    ]
    for name in names:
        if not NAME.fullmatch(name) or name in RESERVED_NAMES:
            raise UsageError(f"{name!r} cannot be a model's name", "letters, digits, '.', '_' and '-' can")
        if names.count(name) > 1:
            raise UsageError(f"two models are called {name!r}", "name them with --name, once for each, in order")
    return names


def stem(model: str) -> str:
    """What a model's path or name ends in."""
    path = Path(model.rpartition("@")[2])
    if path.exists():
        path = path.resolve()
        return path.parent.name if path.name == "classifier.safetensors" else path.stem if path.is_file() else path.name
    return model.rpartition("/")[2]


class Endpoint:
    """One model: `classify` and `explain` take image files and give answers or raise `Refusal`."""

    def __init__(
        self,
        known: ModelInfo,
        nursery: ForkServer,
        settings: Settings,
        metrics: Metrics,
        reader: ImageDecoder,
        duty: WorkerConfig,
    ):
        self.info = known
        self.nursery = nursery
        self.settings = settings
        self.reader = reader
        self.duty = duty
        self.batch = settings.max_batch_size
        self.graph = known.graph
        self.runtime = "onnxruntime" if known.graph else "torch"
        self.made_page: bytes | None = None
        self.page_lock = asyncio.Lock()
        batcher = Scheduler(settings.max_batch_size or 1, settings.queue_size, settings.max_delay_ms / 1000)
        self.predicting = WorkerPool(known.name, "predict", self._predicts, batcher, metrics, settings.processes or 1)
        self.explaining = None
        if settings.explain and known.graph is None:
            self.explaining = WorkerPool(
                known.name, "explain", self._explains, Scheduler(1, settings.queue_size), metrics
            )

    @property
    def ready(self) -> bool:
        """Whether predictions and explanations will be answered."""
        return self.predicting.ready and (self.explaining is None or self.explaining.ready)

    async def open(self) -> None:
        """Chooses the runtime and starts the processes; raises `VitrailError` where they cannot be started."""
        if self.info.graph is None:
            await self._choose_runtime()
        hello = await self.predicting.open()
        self.batch = hello["batch"]
        if self.explaining:
            await self.explaining.open()

    async def close(self) -> None:
        """Ends the processes."""
        await self.predicting.close()
        if self.explaining:
            await self.explaining.close()

    def _predicts(self) -> Any:
        return self._spawn(graph=self.graph, batch=self.batch)

    def _explains(self) -> Any:
        return self._spawn(batch=1, explains=True)

    def _spawn(self, **changes: Any) -> Any:
        return self.nursery.spawn(WorkerConfig(**{**vars(self.duty), **changes}))

    async def _choose_runtime(self) -> None:
        """torch, or ONNX Runtime where it is asked for or found to be faster here."""
        wanted = self.settings.backend
        if wanted == "torch" or (wanted == "auto" and not importlib.util.find_spec("onnxruntime")):
            return
        from vitrail.serving.onnx_cache import onnx_cache_folder

        try:
            document, _ = await self._run_once(
                {"do": "graph", "folder": str(onnx_cache_folder()), "batch": self.settings.max_batch_size}
            )
        except VitrailError as error:
            if wanted == "onnxruntime":
                raise
            log("backend", model=self.info.name, chosen="torch", error=str(error))
            return
        rates = {name: max(by_batch.values()) for name, by_batch in document["rates"].items()}
        if wanted == "onnxruntime" or rates["onnxruntime"] > rates["torch"]:
            self.runtime, self.graph = "onnxruntime", document["path"]
        rounded = {name: round(rate, 1) for name, rate in rates.items()}
        log("backend", model=self.info.name, chosen=self.runtime, images_per_second=rounded)

    async def _run_once(self, ask: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """One task in a process of its own, which ends with it; raises `VitrailError` with what went wrong."""
        try:
            worker = await Worker.start(lambda: self._spawn(graph=self.info.graph, batch=1))
        except (WorkerCrashed, OSError):
            raise VitrailError(f"the process for {ask['do']} cannot be started") from None
        try:
            worker.send(ask, [])
            document, parts = await worker.receive(MAX_SETUP_S)
        except (WorkerCrashed, OSError):
            raise VitrailError(f"the process for {ask['do']} ended") from None
        finally:
            worker.close()
        if "error" in document:
            raise error_from(document)
        return document, parts

    async def page(self) -> bytes:
        """The page at /, made when it is first asked for."""
        async with self.page_lock:
            if self.made_page is None:
                try:
                    ask = {"do": "page", "name": self.info.name, "explains": self.explaining is not None}
                    _, self.made_page = await self._run_once(ask)
                except VitrailError as error:
                    raise internal_error(f"the page cannot be made: {error}") from None
            return self.made_page

    async def read(self, files: Sequence[bytes]) -> list[Pixels | ImageError]:
        """The pixels of image files, or why there are none."""
        return await self.reader.decode_all(files, self.info.preprocess)

    async def fit(self, pixels_NHWC: np.ndarray) -> list[Pixels]:
        """Decoded images -> pixels of the model's size; raises `Refusal` where they do not suit it."""
        preprocess = self.info.preprocess
        if pixels_NHWC.shape[3] != preprocess.channels:
            raise bad_request(f"the pixels have {pixels_NHWC.shape[3]} channels; the model takes {preprocess.channels}")
        try:
            return await self.reader.run(fit_all, pixels_NHWC, preprocess)
        except ImageError as error:
            raise unreadable_image(error.reason) from None

    async def classify(self, pixels: Sequence[Pixels], deadline: float) -> np.ndarray:
        """The logits (or features) of images, a row each."""
        items = [Item(deadline, each, {"do": "logits"}) for each in pixels]
        return np.stack(await self.predicting.submit(items, deadline))

    async def explain(
        self, pixels: Sequence[Pixels], options: dict[str, Any], picture: str | None, deadline: float
    ) -> list[tuple[dict[str, Any], bytes]]:
        """The explanations of images, as JSON and, where a picture is asked for, PNG; options as `explain_options`."""
        if self.explaining is None:
            sentence = (
                "this server gives no explanations" if not self.settings.explain else "an ONNX file has no inside"
            )
            raise RequestError(501, "unsupported", sentence)
        ask = {"do": "explain", "picture": picture, **options}
        found = await self.explaining.submit([Item(deadline, each, ask) for each in pixels], deadline)
        return [(document["explanation"], parts) for document, parts in found]

    def output_values(self, rows_NY: np.ndarray) -> dict[str, np.ndarray]:
        """The protocol's outputs from logits or features."""
        if not self.info.classes:
            return {"features": rows_NY}
        return {"logits": rows_NY, "probabilities": softmax(rows_NY)}

    def top_classes(self, row_Y: np.ndarray, top: int) -> list[dict[str, Any]]:
        """The most probable classes of one image, best first."""
        probability_Y = softmax(row_Y[None])[0]
        best = np.argsort(-probability_Y, kind="stable")[:top]
        return [{"label": self.info.classes[i], "probability": float(probability_Y[i])} for i in best.tolist()]

    def metadata(self) -> dict[str, Any]:
        """What the protocol says of a model."""
        answers = len(self.info.classes) or self.info.config.pooled_width
        return {
            "name": self.info.name,
            "versions": [VERSION],
            "platform": f"{self.runtime}_vitrail",
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, answers]} for name in self.info.outputs],
        }


def softmax(rows_NY: np.ndarray) -> np.ndarray:
    """Logits -> probabilities, row by row."""
    shifted = np.exp(rows_NY - rows_NY.max(axis=1, keepdims=True))
    found: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return found


def find_endpoint(models: dict[str, Endpoint], name: str | None, version: str | None = None) -> Endpoint:
    """The model of a name (the first where none is given); raises `Refusal` where there is none."""
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        raise not_found(
            f"there is no model {name[:60]!r}" + (f": {hint}" if (hint := did_you_mean(name[:60], models)) else "")
        )
    if version not in (None, VERSION):
        raise not_found(f"{name} has no version {version[:20]!r}, only {VERSION!r}")
    return models[name]


def compute_deadline(started: float, timeout: str | float | None, most: float) -> float:
    """When a request is given up: what it asks for in seconds, within what the server allows."""
    if timeout is None:
        return started + most
    try:
        seconds = float(timeout)
    except ValueError:
        seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise bad_request("the timeout is not a number of seconds above 0")
    return started + min(seconds, most)
