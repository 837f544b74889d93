"""The endpoint of one model: its metadata, its two worker pools, and the steps from image files to results."""

import asyncio
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.classifier import Classifier
from vitrail.data.decode import ImageError
from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.model.config import ViTConfig
from vitrail.serving.decoding import ImageDecoder, Pixels, fit_all
from vitrail.serving.errors import RequestError, bad_request, internal_error, not_found, unreadable_image
from vitrail.serving.fork_server import ForkServer, ModelSource
from vitrail.serving.logs import log
from vitrail.serving.metrics import Metrics
from vitrail.serving.scheduler import Item, Scheduler
from vitrail.serving.settings import Settings
from vitrail.serving.worker import WorkerConfig
from vitrail.serving.worker_pool import MAX_SETUP_S, Worker, WorkerCrashed, WorkerPool, parse_error

MODEL_VERSION = "1"
NAME_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)  # it becomes part of URLs
RESERVED_NAMES = ("stats",)  # /v2/models/stats is a route


@dataclass(frozen=True)
class ModelInfo:
    """What the server knows about a model without running it."""

    name: str
    index: int
    source: ModelSource
    config: ViTConfig
    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: float
    origin: dict[str, Any]
    onnx_path: str | None  # the ONNX file of a model that is served from one

    @property
    def outputs(self) -> list[str]:
        """The names of the protocol's output tensors."""
        return ["logits", "probabilities"] if self.classes else ["features"]


def describe_model(name: str, index: int, source: ModelSource, classifier: Classifier | None) -> ModelInfo:
    """Returns the metadata of a classifier, or of the ONNX file if `classifier` is None."""
    if classifier is None:
        from vitrail.exporting.onnx_file import parse_onnx, read_onnx_bytes

        path = Path(source.model)
        onnx, _ = parse_onnx(read_onnx_bytes(path), path)
        return ModelInfo(
            name, index, source, onnx.config, onnx.classes, onnx.preprocess, onnx.temperature, onnx.origin, source.model
        )
    return ModelInfo(
        name, index, source, classifier.vit.config, classifier.classes, classifier.preprocess,
        classifier.temperature, classifier.origin, None,
    )  # fmt: skip


def choose_names(models: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the names of the models: `names`, or names from their paths; raises `UsageError` for an invalid one."""
    if names and len(names) != len(models):
        raise UsageError(
            f"there are {len(names)} names for {len(models)} models", "use --name once per model, in order"
        )
    names = list(names) or [
        re.sub(r"[^\w.-]", "-", derive_name(model), flags=re.ASCII).strip("-.") or "model" for model in models
    ]
    for name in names:
        if not NAME_PATTERN.fullmatch(name) or name in RESERVED_NAMES:
            raise UsageError(f"{name!r} cannot be a model's name", "use letters, digits, '.', '_' and '-'")
        if names.count(name) > 1:
            raise UsageError(f"two models have the name {name!r}", "use --name once per model, in order")
    return names


def derive_name(model: str) -> str:
    """Returns the last part of a model's path or name."""
    path = Path(model.rpartition("@")[2])
    if path.exists():
        path = path.resolve()
        return path.parent.name if path.name == "classifier.safetensors" else path.stem if path.is_file() else path.name
    return model.rpartition("/")[2]


class Endpoint:
    """Serves one model: decodes images, classifies and explains them; raises `RequestError`."""

    def __init__(
        self,
        info: ModelInfo,
        fork_server: ForkServer,
        settings: Settings,
        metrics: Metrics,
        decoder: ImageDecoder,
        worker_config: WorkerConfig,
    ):
        self.info = info
        self.fork_server = fork_server
        self.settings = settings
        self.decoder = decoder
        self.worker_config = worker_config
        self.batch_size = settings.max_batch_size
        self.onnx_path = info.onnx_path
        self.backend = "onnxruntime" if info.onnx_path else "torch"
        self.page: bytes | None = None
        self.page_lock = asyncio.Lock()
        scheduler = Scheduler(settings.max_batch_size or 1, settings.queue_size, settings.max_delay_ms / 1000)
        self.prediction_pool = WorkerPool(
            info.name, "predict", self._spawn_predictor, scheduler, metrics, settings.processes or 1
        )
        self.explanation_pool = None
        if settings.explain and info.onnx_path is None:
            self.explanation_pool = WorkerPool(
                info.name, "explain", self._spawn_explainer, Scheduler(1, settings.queue_size), metrics
            )

    @property
    def is_ready(self) -> bool:
        """Whether all worker pools are ready."""
        return self.prediction_pool.is_ready and (self.explanation_pool is None or self.explanation_pool.is_ready)

    async def open(self) -> None:
        """Chooses the backend and starts the processes; raises `VitrailError` if they cannot be started."""
        if self.info.onnx_path is None:
            await self._choose_backend()
        hello = await self.prediction_pool.open()
        self.batch_size = hello["batch_size"]
        if self.explanation_pool:
            await self.explanation_pool.open()

    async def close(self) -> None:
        await self.prediction_pool.close()
        if self.explanation_pool:
            await self.explanation_pool.close()

    def _spawn_predictor(self) -> Any:
        return self._spawn(onnx_path=self.onnx_path, batch_size=self.batch_size)

    def _spawn_explainer(self) -> Any:
        return self._spawn(batch_size=1, is_explainer=True)

    def _spawn(self, **changes: Any) -> Any:
        return self.fork_server.spawn(replace(self.worker_config, **changes))

    async def _choose_backend(self) -> None:
        """Switches from torch to ONNX Runtime if the settings request it, or if it is faster on this machine."""
        requested = self.settings.backend
        if requested == "torch" or (requested == "auto" and not importlib.util.find_spec("onnxruntime")):
            return
        from vitrail.serving.onnx_cache import onnx_cache_folder

        try:
            document, _ = await self._run_once(
                {
                    "operation": "onnx",
                    "folder": str(onnx_cache_folder()),
                    "max_batch_size": self.settings.max_batch_size,
                }
            )
        except VitrailError as error:
            if requested == "onnxruntime":
                raise
            log("backend", model=self.info.name, chosen="torch", error=str(error))
            return
        rates = {name: max(rate_by_size.values()) for name, rate_by_size in document["rates"].items()}
        if requested == "onnxruntime" or rates["onnxruntime"] > rates["torch"]:
            self.backend, self.onnx_path = "onnxruntime", document["path"]
        rounded = {name: round(rate, 1) for name, rate in rates.items()}
        log("backend", model=self.info.name, chosen=self.backend, images_per_second=rounded)

    async def _run_once(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Runs one operation in a new process; raises `VitrailError` if it fails."""
        try:
            worker = await Worker.start(lambda: self._spawn(onnx_path=self.info.onnx_path, batch_size=1))
        except (WorkerCrashed, OSError):
            raise VitrailError(f"the process for {request['operation']} cannot be started") from None
        try:
            worker.send(request, [])
            document, payload = await worker.receive(MAX_SETUP_S)
        except (WorkerCrashed, OSError):
            raise VitrailError(f"the process for {request['operation']} ended") from None
        finally:
            worker.close()
        if "error" in document:
            raise parse_error(document)
        return document, payload

    async def get_page(self) -> bytes:
        """Returns the web page, which is made on the first call."""
        async with self.page_lock:
            if self.page is None:
                try:
                    can_explain = self.explanation_pool is not None
                    request = {"operation": "page", "name": self.info.name, "can_explain": can_explain}
                    _, self.page = await self._run_once(request)
                except VitrailError as error:
                    raise internal_error(f"the page cannot be made: {error}") from None
            return self.page

    async def decode_files(self, files: Sequence[bytes]) -> list[Pixels | ImageError]:
        """Returns the pixels or the error of each image file."""
        return await self.decoder.decode_all(files, self.info.preprocess)

    async def fit_pixels(self, pixels_NHWC: np.ndarray) -> list[Pixels]:
        """Resizes decoded images to the model's image size; raises `RequestError` if the model does not accept them."""
        preprocess = self.info.preprocess
        if pixels_NHWC.shape[3] != preprocess.channels:
            raise bad_request(f"the pixels have {pixels_NHWC.shape[3]} channels; the model takes {preprocess.channels}")
        try:
            return await self.decoder.run(fit_all, pixels_NHWC, preprocess)
        except ImageError as error:
            raise unreadable_image(error.reason) from None

    async def classify(self, pixels: Sequence[Pixels], deadline: float) -> np.ndarray:
        """Returns the logits (or features) of the images, (N, Y)."""
        items = [Item(deadline, each, {"operation": "logits"}) for each in pixels]
        return np.stack(await self.prediction_pool.submit(items, deadline))

    async def explain(
        self, pixels: Sequence[Pixels], options: dict[str, Any], picture: str | None, deadline: float
    ) -> list[tuple[dict[str, Any], bytes]]:
        """Returns the explanation of each image as JSON, and as PNG if `picture` is set.

        `options` are those of `explain_options`.
        """
        if self.explanation_pool is None:
            is_disabled = not self.settings.explain
            sentence = "explanations are disabled on this server" if is_disabled else "an ONNX file cannot be explained"
            raise RequestError(501, "unsupported", sentence)
        request = {"operation": "explain", "picture": picture, **options}
        results = await self.explanation_pool.submit([Item(deadline, each, request) for each in pixels], deadline)
        return [(document["explanation"], png) for document, png in results]

    def make_outputs(self, rows_NY: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the protocol's output tensors for logits or features."""
        if not self.info.classes:
            return {"features": rows_NY}
        return {"logits": rows_NY, "probabilities": softmax(rows_NY)}

    def select_top_classes(self, row_Y: np.ndarray, top: int) -> list[dict[str, Any]]:
        """Returns the most probable classes of one image, best first."""
        probability_Y = softmax(row_Y[None])[0]
        best = np.argsort(-probability_Y, kind="stable")[:top]
        return [{"label": self.info.classes[i], "probability": float(probability_Y[i])} for i in best.tolist()]

    def describe(self) -> dict[str, Any]:
        """Returns the protocol's model metadata."""
        output_width = len(self.info.classes) or self.info.config.pooled_width
        return {
            "name": self.info.name,
            "versions": [MODEL_VERSION],
            "platform": f"{self.backend}_vitrail",
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, output_width]} for name in self.info.outputs],
        }


def softmax(rows_NY: np.ndarray) -> np.ndarray:
    exponentials_NY = np.exp(rows_NY - rows_NY.max(axis=1, keepdims=True))
    probabilities_NY: np.ndarray = exponentials_NY / exponentials_NY.sum(axis=1, keepdims=True)
    return probabilities_NY


def find_endpoint(endpoints: dict[str, Endpoint], name: str | None, version: str | None = None) -> Endpoint:
    """Returns the endpoint of a model (the first one without a name); raises `RequestError` if it does not exist."""
    if name is None:
        return next(iter(endpoints.values()))
    if name not in endpoints:
        raise not_found(
            f"there is no model {name[:60]!r}" + (f": {hint}" if (hint := did_you_mean(name[:60], endpoints)) else "")
        )
    if version not in (None, MODEL_VERSION):
        raise not_found(f"{name} has no version {version[:20]!r}, only {MODEL_VERSION!r}")
    return endpoints[name]


def compute_deadline(started: float, timeout: str | float | None, max_seconds: float) -> float:
    """Returns the deadline: `timeout` seconds after the start, at most `max_seconds` (the default)."""
    if timeout is None:
        return started + max_seconds
    try:
        seconds = float(timeout)
    except ValueError:
        seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise bad_request("the timeout is not a positive number of seconds")
    return started + min(seconds, max_seconds)
