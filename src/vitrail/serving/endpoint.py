"""The endpoint of one model: its metadata, its worker processes, and the steps from image files to results."""

import asyncio
import importlib.util
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.decode import ImageError
from vitrail.errors import VitrailError, did_you_mean
from vitrail.serving.decode_worker import Pixels, fit_all
from vitrail.serving.decoding import DecodedImage, ImageDecoder
from vitrail.serving.errors import RequestError, bad_request, not_found, unreadable_image
from vitrail.serving.explainer import Explainer
from vitrail.serving.fork_server import ForkServer
from vitrail.serving.logs import log
from vitrail.serving.metrics import Metrics
from vitrail.serving.model_info import ModelInfo
from vitrail.serving.page import Page
from vitrail.serving.predictor import choose_batch_size
from vitrail.serving.scheduler import Item, Scheduler
from vitrail.serving.service_time import ArrivalTime, BatchTime
from vitrail.serving.settings import Settings
from vitrail.serving.worker import WorkerConfig
from vitrail.serving.worker_pool import ADMISSION_MARGIN, WorkerPool
from vitrail.serving.worker_process import Worker, WorkerCrashed, parse_error
from vitrail.tasks import MULTI_LABEL, REGRESSION, TASKS

MAX_SETUP_S = 1800.0  # a process for a one-time operation, such as an ONNX export, is killed after this time
MAX_ARRIVAL_S = 1.0  # an accepted request counts for at most this time before its images are known
ARRIVAL_MARGIN = 1.5  # an accepted request may take this multiple of the mean time until its images are known
MODEL_VERSION = "1"


class Arrival:
    """A request that was accepted from its headers. Until its images are known, it counts as one.

    Otherwise all requests whose headers arrive at the same time would see the same short queue. A client that sends its
    image slowly counts for a short time only.
    """

    def __init__(self, pool: WorkerPool, decoder: ImageDecoder, time: ArrivalTime):
        self.pool = pool
        self.decoder = decoder
        self.time = time
        self.started = asyncio.get_running_loop().time()
        self.pool.coming += 1
        self.decoder.coming += 1
        self.timer: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(MAX_ARRIVAL_S, self.end)

    def complete(self) -> None:
        """Stops counting the request, because its images are known."""
        if self.timer is not None:
            now = asyncio.get_running_loop().time()
            self.time.observe(now - self.started, now)
            self.end()

    def end(self) -> None:
        """Stops counting the request; does nothing the second time."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
            self.pool.coming -= 1
            self.decoder.coming -= 1


PROGRAM_BACKENDS = {".onnx": "onnxruntime", ".xml": "openvino"}  # of an exported file, by suffix


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
        self.batch_size = settings.max_batch_size or 1  # measured by `open` if the settings have none
        self.program_path = info.program_path
        self.backend = PROGRAM_BACKENDS[Path(info.program_path).suffix.lower()] if info.program_path else "torch"
        self.batch_time = BatchTime()
        self.arrival_time = ArrivalTime()
        scheduler = Scheduler(self.batch_size, settings.queue_size, settings.max_delay_ms / 1000, self.batch_time)
        self.prediction_pool = WorkerPool(
            info.name, "predict", self._spawn_predictor, scheduler, metrics, settings.processes or 1,
            on_start=self._learn_batch_time,
        )  # fmt: skip
        self.explainer: Explainer | None = None
        if settings.explain and info.program_path is None:
            self.explainer = Explainer(info, settings, metrics, decoder, self._spawn_explainer)
        self.page = Page(self._make_page)

    @property
    def is_ready(self) -> bool:
        """Whether predictions and explanations are ready."""
        return self.prediction_pool.is_ready and (self.explainer is None or self.explainer.is_ready)

    async def open(self) -> None:
        """Chooses backend and batch size and starts the processes; raises `VitrailError` if that is not possible."""
        rates = await self._choose_backend() if self.info.program_path is None else None
        if self.settings.max_batch_size is None:
            if rates is None:
                document, _ = await self._run_once({"operation": "rates"}, program_path=self.program_path)
                rates = dict(document["rates"])
            self.batch_size = choose_batch_size(rates)
            self.prediction_pool.scheduler.max_batch_size = self.batch_size
        await self.prediction_pool.open()
        if self.explainer:
            await self.explainer.open()

    async def close(self) -> None:
        self.page.close()
        await self.prediction_pool.close()
        if self.explainer:
            await self.explainer.close()

    def _learn_batch_time(self, hello: dict[str, Any]) -> None:
        """Takes the times that the first worker has measured; later ones may have shared the cores with requests."""
        if not self.batch_time.seconds_by_size:
            self.batch_time.seconds_by_size = dict(hello.get("seconds_by_size", []))

    async def _spawn_predictor(self) -> socket.socket:
        return await self._spawn(program_path=self.program_path, batch_size=self.batch_size)

    async def _spawn_explainer(self) -> socket.socket:
        return await self._spawn(task="explain")

    async def _spawn(self, **changes: Any) -> socket.socket:
        return await self.fork_server.spawn(replace(self.worker_config, **changes))

    async def _choose_backend(self) -> dict[int, float] | None:
        """Switches from torch to ONNX Runtime if the settings request it, or if it is faster on this machine.

        Returns the images per second by batch size of the chosen one; None if they were not measured.
        """
        requested = self.settings.backend
        if requested == "torch" or (requested == "auto" and not importlib.util.find_spec("onnxruntime")):
            return None
        from vitrail.serving.onnx_cache import onnx_cache_folder

        request = {
            "operation": "onnx", "folder": str(onnx_cache_folder()), "max_batch_size": self.settings.max_batch_size
        }  # fmt: skip
        try:
            document, _ = await self._run_once(request)
        except VitrailError as error:
            if requested == "onnxruntime":
                raise
            log("backend", model=self.info.name, chosen="torch", error=str(error))
            return None
        rates_by_size = {name: dict(rates) for name, rates in document["rates"].items()}
        rates = {name: max(each.values()) for name, each in rates_by_size.items()}
        if requested == "onnxruntime" or rates["onnxruntime"] > rates["torch"]:
            self.backend, self.program_path = "onnxruntime", document["path"]
        rounded = {name: round(rate, 1) for name, rate in rates.items()}
        log("backend", model=self.info.name, chosen=self.backend, images_per_second=rounded)
        return rates_by_size[self.backend]

    async def _run_once(self, request: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], bytes]:
        """Runs one operation in a new process; raises `VitrailError` if it fails."""
        try:
            worker = await Worker.start(lambda: self._spawn(**{"program_path": self.info.program_path, **changes}))
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

    async def _make_page(self) -> bytes:
        request = {"operation": "page", "name": self.info.name, "can_explain": self.explainer is not None}
        _, content = await self._run_once(request)
        return content

    def expect_request(self, deadline: float) -> Arrival:
        """Accepts a request that has not been read yet.

        Raises `RequestError` if not even one image is expected to be predicted before the deadline.
        """
        self.decoder.check_room(1 + self.decoder.coming)
        arrival_s = ARRIVAL_MARGIN * self.arrival_time.expected(asyncio.get_running_loop().time())
        wait_before = self.decoder.expected_wait(1)
        self.prediction_pool.check_load(1, deadline - arrival_s, wait_before=wait_before, margin=ADMISSION_MARGIN)
        return Arrival(self.prediction_pool, self.decoder, self.arrival_time)

    def admit(self, images: int, deadline: float) -> AbstractContextManager[None]:
        """Returns a context in which this number of images is decoded for a prediction.

        Entering it raises `RequestError` if they are not expected to be predicted before the deadline.
        """
        return self.prediction_pool.admit(images, deadline, wait_before=self.decoder.expected_wait(images))

    async def decode_files(self, files: Sequence[bytes], deadline: float) -> list[DecodedImage | ImageError]:
        """Returns the image or the error of each file."""
        return await self.decoder.decode_all(files, self.info.preprocess, deadline)

    async def fit_pixels(self, pixels_NHWC: np.ndarray) -> list[Pixels]:
        """Resizes decoded images to the model's image size; raises `RequestError` if the model does not accept them."""
        preprocess = self.info.preprocess
        if pixels_NHWC.shape[3] != preprocess.channels:
            raise bad_request(f"the pixels have {pixels_NHWC.shape[3]} channels; the model takes {preprocess.channels}")
        datatype = "UINT8" if preprocess.values == "uint8" else "FP32"
        if (pixels_NHWC.dtype == np.uint8) != (datatype == "UINT8"):
            raise bad_request(f"the model takes pixels of {datatype}")
        try:
            return await self.decoder.run(fit_all, pixels_NHWC, preprocess)
        except ImageError as error:
            raise unreadable_image(error.reason) from None

    async def classify(self, pixels: Sequence[Pixels], deadline: float) -> np.ndarray:
        """Returns the logits or features of the images, (N, Y), with a last column of distances if they are fitted."""
        items = [Item(deadline, each, {"operation": "logits"}) for each in pixels]
        return np.stack(await self.prediction_pool.submit(items, deadline))

    def require_explainer(self) -> Explainer:
        """Returns the explainer; raises `RequestError` if this model or server has none."""
        if self.explainer is None:
            sentence = "explanations are disabled on this server"
            if self.settings.explain:
                sentence = "an exported file cannot be explained"
            raise RequestError(501, "unsupported", sentence)
        return self.explainer

    def make_outputs(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the protocol's output tensors for the rows of `classify`."""
        if not self.info.classes:
            return {"features": rows}
        logits_NY = rows[:, : len(self.info.classes)]
        if self.info.answers.task == REGRESSION:
            outputs = {"numbers": logits_NY}
        else:
            probabilities_NY = TASKS[self.info.answers.task].to_probabilities_array(logits_NY)
            outputs = {"logits": logits_NY, "probabilities": probabilities_NY}
        if self.info.unlike is None:
            return outputs
        return outputs | {"unlike": self.info.unlike.find_quantiles(rows[:, -1:]).astype(np.float32)}

    def answer(self, row: np.ndarray, top: int) -> dict[str, Any]:
        """Returns the answer for one image: `top`, its most probable classes or its labels, or `numbers` by name.

        It also has the quantile `unlike`, if that is fitted.
        """
        unlike = {} if self.info.unlike is None else {"unlike": float(self.info.unlike.find_quantiles(row[-1]))}
        if self.info.answers.task == REGRESSION:
            return {"numbers": self.info.answers.name_numbers(row[: len(self.info.classes)])} | unlike
        return {"top": self.select_top_classes(row, top)} | unlike

    def no_answer(self) -> dict[str, Any]:
        """Returns the answer for an image that cannot be read."""
        return {"numbers": {}} if self.info.answers.task == REGRESSION else {"top": []}

    def select_top_classes(self, row: np.ndarray, top: int) -> list[dict[str, Any]]:
        """Returns the most probable classes of one image, best first; with several labels, those above thresholds."""
        answers, row_Y = self.info.answers, row[: len(self.info.classes)]
        if answers.task == MULTI_LABEL:
            return [vars(each) for each in answers.find_labels(row_Y)]
        probability_Y = TASKS[answers.task].to_probabilities_array(row_Y)
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
            "outputs": [
                {"name": name, "datatype": "FP32", "shape": [-1, 1 if name == "unlike" else output_width]}
                for name in self.info.outputs
            ],
        }


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
