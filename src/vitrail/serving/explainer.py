"""Explains images of one model: the time of an explanation is known before, and slow ones do not delay quick ones."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from vitrail.errors import UsageError
from vitrail.explanation.methods import DEFAULT_METHOD, find_method
from vitrail.serving.decode_worker import Pixels
from vitrail.serving.decoding import ImageDecoder
from vitrail.serving.errors import bad_request
from vitrail.serving.metrics import Metrics
from vitrail.serving.model_info import ModelInfo
from vitrail.serving.scheduler import Item, Scheduler
from vitrail.serving.service_time import ExplanationTime, PassTimes
from vitrail.serving.settings import Settings
from vitrail.serving.worker_pool import ADMISSION_MARGIN, WorkerPool
from vitrail.serving.worker_process import Spawn

QUICK_SHARE = 0.1  # an explanation is quick if it takes at most this share of the time limit of requests
QUICK_FACTOR = 1.5  # or at most this multiple of the time of the default method


@dataclass(frozen=True)
class Plan:
    """The request for a worker, the pool that computes it, and the expected seconds per image."""

    request: dict[str, Any]
    pool: WorkerPool
    seconds: float


class Explainer:
    """One process for quick explanations, and one for slow ones, which is started for the first of them."""

    def __init__(self, info: ModelInfo, settings: Settings, metrics: Metrics, decoder: ImageDecoder, spawn: Spawn):
        self.settings = settings
        self.decoder = decoder
        self.default_method = DEFAULT_METHOD if info.classes else "attention"
        height, width = info.preprocess.image_size
        self.time = ExplanationTime(patches=(height // info.config.patch) * (width // info.config.patch))

        def make_pool(task: str) -> WorkerPool:
            scheduler = Scheduler(1, settings.queue_size, service_time=self.time)
            return WorkerPool(info.name, task, spawn, scheduler, metrics, on_start=self._learn_times)

        self.quick_pool = make_pool("explain")
        self.slow_pool = make_pool("explain_slow")

    @property
    def is_ready(self) -> bool:
        return self.quick_pool.is_ready

    async def open(self) -> None:
        """Starts the process for quick explanations; raises `VitrailError` if it cannot be started."""
        await self.quick_pool.open()

    async def close(self) -> None:
        await self.quick_pool.close()
        await self.slow_pool.close()

    def _learn_times(self, hello: dict[str, Any]) -> None:
        """Takes the times of the first process; later ones may have shared the cores with requests."""
        if self.time.passes is None and "pass_times" in hello:
            self.time.passes = PassTimes(**hello["pass_times"])

    def plan(
        self, options: dict[str, Any], picture: str | None, images: int, available_s: float, deadline: float
    ) -> Plan:
        """Returns how a request is computed; `options` are those of `explain_options`.

        Raises `RequestError` for an unknown method, for one that takes longer than the `available_s` seconds that the
        request may take, and if there is no answer before the deadline because of other requests.
        """
        request = {"operation": "explain", "picture": picture, **options}
        method = options["options"]["method"]
        try:
            seconds = self.time.seconds(method, picture is not None)
            default = self.time.seconds(self.default_method, picture is not None)
        except UsageError as error:
            raise bad_request(str(error)) from None
        if images * seconds * ADMISSION_MARGIN > available_s:  # too slow even on an idle server
            self.time.relax([request])
            raise bad_request(
                f"method {method} takes about {images * seconds:.2g} s on this server ({find_method(method).cost} per "
                f"image), and the time limit of this request is {available_s:.3g} s: use another method, such as "
                f"{self.default_method}, or a higher limit (timeout; the server's own is {self.settings.timeout_s:g} s)"
            )
        is_quick = seconds <= max(QUICK_SHARE * self.settings.timeout_s, QUICK_FACTOR * default)
        pool = self.quick_pool if is_quick else self.slow_pool
        pool.start()
        pool.check_load(images, deadline, seconds, self.decoder.expected_wait(images), ADMISSION_MARGIN)
        return Plan(request, pool, seconds)

    def admit(self, plan: Plan, images: int, deadline: float) -> AbstractContextManager[None]:
        """Returns a context in which images are decoded; entering it raises `RequestError` if they would be late."""
        return plan.pool.admit(images, deadline, plan.seconds, self.decoder.expected_wait(images))

    async def explain(
        self, plan: Plan, pixels: Sequence[Pixels], deadline: float
    ) -> list[tuple[dict[str, Any], bytes]]:
        """Returns the explanation of each image as JSON, and as PNG if the request asks for a picture."""
        items = [Item(deadline, each, plan.request, seconds=plan.seconds) for each in pixels]
        results = await plan.pool.submit(items, deadline)
        return [(document["explanation"], png) for document, png in results]
