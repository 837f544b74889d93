"""Decodes untrusted image files in processes that may die: a crash of an image library does not affect the server."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from vitrail.data.decode import ImageError
from vitrail.data.pixel_range import DEPTH_WARNING
from vitrail.data.preprocess import Preprocess
from vitrail.documents import PreprocessDocument
from vitrail.serving.decode_worker import Pixels
from vitrail.serving.errors import RequestError, overloaded
from vitrail.serving.metrics import Metrics
from vitrail.serving.scheduler import Item, Scheduler
from vitrail.serving.service_time import BatchTime
from vitrail.serving.settings import Settings
from vitrail.serving.worker_pool import WorkerPool
from vitrail.serving.worker_process import Spawn

MAX_ATTEMPTS = 2  # a file during whose decoding this many processes died is unreadable
EXPECTED_DECODE_S = 0.005  # until files have been decoded
Result = TypeVar("Result")


@dataclass(frozen=True)
class DecodedImage:
    """The pixels of an image file in the model's size, and what a client should know about them."""

    pixels: Pixels
    is_deep: bool = False  # the file has 16 bits or floats

    @property
    def warning(self) -> str | None:
        return DEPTH_WARNING if self.is_deep else None


@lru_cache
def describe_preprocess(preprocess: Preprocess) -> PreprocessDocument:
    return preprocess.to_json()


class ImageDecoder:
    """Decodes files in `decode_processes` processes, and large images in one more.

    Refuses files if more than `queue_size` would be waiting.
    """

    def __init__(self, settings: Settings, metrics: Metrics, spawn: Spawn):
        self.settings = settings
        self.metrics = metrics
        self.threads = ThreadPoolExecutor(settings.decode_processes, "parse")
        self.pool = self._make_pool("decode", settings.decode_processes, spawn)
        self.large_image_pool = self._make_pool("decode_large", 1, spawn)
        self.waiting = 0
        self.coming = 0  # files of accepted requests whose body has not arrived

    def _make_pool(self, task: str, processes: int, spawn: Spawn) -> WorkerPool:
        scheduler = Scheduler(1, 2 * self.settings.queue_size, service_time=BatchTime({1: EXPECTED_DECODE_S}))
        pool = WorkerPool("", task, spawn, scheduler, Metrics(), processes)  # its times are not those of a model
        pool.labeled_metrics["restarts"] = self.metrics.restarts.labels("", task)
        return pool

    async def open(self) -> None:
        """Starts the processes; raises `VitrailError` if they cannot be started."""
        self.large_image_pool.start()
        await self.pool.open()

    async def decode_all(
        self, files: Sequence[bytes], preprocess: Preprocess, deadline: float
    ) -> list[DecodedImage | ImageError]:
        """Returns each image, or its error: a bad file does not affect the other files."""
        self.check_room(len(files))
        self.waiting += len(files)
        document = describe_preprocess(preprocess)
        tasks = [asyncio.create_task(self._decode_one(file, document, deadline)) for file in files]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # if the client disconnected, the files that are still waiting are not decoded
            self.waiting -= len(files)

    async def _decode_one(
        self, file: bytes, preprocess: PreprocessDocument, deadline: float
    ) -> DecodedImage | ImageError:
        """Decodes a file in the pool; a large image only has its header read there and moves to the other pool."""
        document, payload = await self._ask(self.pool, file, preprocess, deadline)
        if "is_large" in document:
            document, payload = await self._ask(self.large_image_pool, file, preprocess, deadline)
        self.metrics.decode.observe(document["seconds"])
        if "unreadable" in document:
            return ImageError("image", document["unreadable"])
        pixels = np.frombuffer(payload, document["dtype"]).reshape(document["pixels"])
        return DecodedImage(pixels, document["is_deep"])

    async def _ask(
        self, pool: WorkerPool, file: bytes, preprocess: PreprocessDocument, deadline: float
    ) -> tuple[dict[str, Any], bytes]:
        """Returns the answer of a process; a file that is decoded while processes die is unreadable."""
        request = {
            "preprocess": preprocess, "max_megapixels": self.settings.max_megapixels,
            "decode_large": pool is self.large_image_pool,
        }  # fmt: skip
        for _ in range(MAX_ATTEMPTS):
            try:
                results = await pool.submit([Item(deadline, np.frombuffer(file, np.uint8), request)], deadline)
            except RequestError as error:
                if error.reason != "crash":
                    raise
            else:
                answer: tuple[dict[str, Any], bytes] = results[0]
                return answer
        return {"unreadable": "the process that decoded it ended; the file may be damaged", "seconds": 0.0}, b""

    def check_room(self, files: int) -> None:
        """Raises `RequestError` if there is no room for this many more files."""
        if self.waiting + files > self.settings.queue_size:
            raise overloaded(self.pool.expected_wait(files))

    def expected_wait(self, files: int) -> float:
        """Returns the expected seconds until this many more files are decoded."""
        return self.pool.expected_wait(files, coming=self.coming)

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Runs a slow function on a client's data in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)

    async def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        await self.pool.close()
        await self.large_image_pool.close()
