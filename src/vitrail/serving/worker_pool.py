"""The worker pool: sends batches from the queue to worker processes, resolves futures, and replaces dead processes."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vitrail.errors import VitrailError
from vitrail.serving.errors import (
    RequestError,
    bad_request,
    deadline_exceeded,
    internal_error,
    overloaded,
    too_little_time,
    worker_crashed,
)
from vitrail.serving.logs import log, warn
from vitrail.serving.messages import Message
from vitrail.serving.metrics import Metrics, Statistics
from vitrail.serving.scheduler import Item, QueueFull, Scheduler
from vitrail.serving.worker_process import Spawn, Worker, WorkerCrashed

MAX_RESTART_DELAY_S = 5.0  # longest pause between two attempts to start a process
DEFAULT_START_S = 0.5  # expected time to start a process, until one has been started
ADMISSION_MARGIN = 1.2  # a request is accepted if this multiple of its expected time is left
DECODING_MARGIN = 1.1  # the same once its images arrived; smaller, so that a small delay does not refuse it now


class WorkAbandoned(Exception):
    """The process was killed because no client waits for its result any more."""


class WorkerPool:
    """Runs `processes` workers, started by `spawn`, which compute the items of one queue in batches.

    A request is accepted only if its answer is expected before its deadline. A process that ends is replaced at once:
    the requests of its batch fail, waiting requests are not affected. A process whose result no client waits for is
    replaced too, if that is faster than to wait for it.
    """

    def __init__(
        self, name: str, task: str, spawn: Spawn, scheduler: Scheduler, metrics: Metrics, processes: int = 1,
        on_start: Callable[[dict[str, Any]], None] = lambda hello: None,
    ):  # fmt: skip
        self.name = name
        self.task = task
        self.spawn = spawn
        self.scheduler = scheduler
        self.metrics = metrics
        self.processes = processes
        self.on_start = on_start  # receives the hello message of each process
        self.statistics = Statistics()
        self.workers: dict[int, Worker] = {}
        self.worker_tasks: list[asyncio.Task[None]] = []
        self.wakeup = asyncio.Event()
        self.first_start: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.start_seconds = DEFAULT_START_S  # of the latest start
        self.free_at = [0.0] * processes  # when each worker is expected to be free
        self.coming = 0  # images of accepted requests that have not arrived or are being decoded
        labels = (name, task)
        self.labeled_metrics = {
            key: getattr(metrics, key).labels(*labels) for key in ("queue", "compute", "batch", "restarts")
        }
        metrics.waiting.labels(*labels).set_function(lambda: len(scheduler))

    @property
    def is_ready(self) -> bool:
        """Whether at least one process has finished its warm-up."""
        return bool(self.workers)

    @property
    def is_idle(self) -> bool:
        """Whether no process computes and no image waits or is coming."""
        return not (self.coming or len(self.scheduler)) and max(self.free_at) <= time.monotonic()

    def start(self) -> None:
        """Starts the processes, unless this was done before."""
        if not self.worker_tasks:
            self.worker_tasks = [asyncio.create_task(self._run_worker(number)) for number in range(self.processes)]

    async def open(self) -> dict[str, Any]:
        """Starts the processes; returns the first hello message or raises the error of the first failed start."""
        self.start()
        return await asyncio.shield(self.first_start)

    async def close(self) -> None:
        """Ends the processes; waiting requests fail."""
        for task in self.worker_tasks:
            task.cancel()
        await asyncio.gather(*self.worker_tasks, return_exceptions=True)
        for item in list(self.scheduler.waiting):
            resolve_item(item, worker_crashed())

    def expected_wait(self, images: int, seconds_each: float = 0.0, coming: int = 0) -> float:
        """Returns the expected seconds until an answer; `coming` images of other requests are first."""
        now = time.monotonic()
        free_in = [max(0.0, free_at - now) for free_at in self.free_at]
        return self.scheduler.expected_wait(images, seconds_each, free_in, coming)

    def check_load(
        self, images: int, deadline: float, seconds_each: float = 0.0, wait_before: float = 0.0, margin: float = 1.0
    ) -> None:
        """Raises `RequestError` if `images` more images are not expected to be ready before the deadline.

        `seconds_each` is their known time, `wait_before` the expected time to decode them; their expected time is
        multiplied by `margin`. Images that are being decoded count only if there is a margin.
        """
        remaining = deadline - time.monotonic()
        alone = self.scheduler.service_time.expected(1) + seconds_each
        wait = max(self.expected_wait(images, seconds_each, self.coming if margin > 1 else 0), wait_before + alone)
        is_full = len(self.scheduler) + images > self.scheduler.queue_size
        if remaining >= max(alone, wait * margin) and not is_full:
            return
        if self.is_idle:  # otherwise the next batch corrects the prediction
            self.scheduler.service_time.relax([])
        raise too_little_time(alone) if remaining < alone else overloaded(wait)

    @contextlib.contextmanager
    def admit(
        self, images: int, deadline: float, seconds_each: float = 0.0, wait_before: float = 0.0
    ) -> Iterator[None]:
        """Reserves places in the queue for images that are decoded in this context.

        Raises `RequestError` if they are not expected to be ready before the deadline.
        """
        self.check_load(images, deadline, seconds_each, wait_before, DECODING_MARGIN)
        self.coming += images
        try:
            yield
        finally:
            self.coming -= images

    async def submit(self, items: list[Item], deadline: float) -> list[Any]:
        """Returns the results of all items in order, or raises the first item's `RequestError`.

        If the caller is canceled, the items leave the queue.
        """
        loop = asyncio.get_running_loop()
        for item in items:
            item.future = loop.create_future()
        self.check_load(len(items), deadline, items[0].seconds)
        try:
            self.scheduler.add(items, time.monotonic())
        except QueueFull:
            raise overloaded(self.expected_wait(len(items))) from None
        self.wakeup.set()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.gather(*(item.future for item in items))
        except TimeoutError:
            raise deadline_exceeded() from None
        finally:
            for item in items:
                self.scheduler.cancel(item)
                item.future.cancel()

    async def _run_worker(self, number: int) -> None:
        """Runs one process, and a new one whenever it ends; returns only when canceled."""
        pause = 0.0
        while True:
            self.free_at[number] = time.monotonic() + pause + self.start_seconds
            await asyncio.sleep(pause)
            try:
                worker = await Worker.start(self.spawn)
            except Exception as error:  # retry after any error, else the model would never be served again
                name = self.name or f"the process for {self.task}"
                message = f"{name} cannot be started" + (f": {error}" if str(error) else "")
                if not self.first_start.done():
                    self.first_start.set_exception(error if isinstance(error, VitrailError) else VitrailError(message))
                    self.first_start.exception()  # else asyncio prints a warning if no task waits for it
                warn("worker_not_started", model=self.name, task=self.task, error=str(error))
                pause = min(max(0.1, 2 * pause), MAX_RESTART_DELAY_S)
                continue
            self.on_start(worker.hello)
            self.start_seconds = worker.start_seconds
            if not self.first_start.done():
                self.first_start.set_result(worker.hello)
            self.workers[number], pause = worker, 0.0
            worker.ended.add_done_callback(lambda _: self.wakeup.set())
            log("worker_ready", model=self.name, task=self.task, pid=worker.hello["pid"])
            try:
                while True:
                    self.free_at[number] = 0.0
                    await self._compute_batch(number, worker, await self._next_batch(worker))
            except WorkAbandoned:
                log("worker_stopped", model=self.name, task=self.task, pid=worker.hello["pid"], why="nobody waits")
            except (WorkerCrashed, OSError):
                self.labeled_metrics["restarts"].inc()
                warn("worker_ended", model=self.name, task=self.task, pid=worker.hello["pid"])
            except Exception as error:  # such as an answer of a wrong size: a pool without its task would serve nothing
                self.labeled_metrics["restarts"].inc()
                warn("worker_failed", model=self.name, task=self.task, pid=worker.hello["pid"], error=repr(error))
            finally:
                del self.workers[number]
                worker.close()

    async def _next_batch(self, worker: Worker) -> list[Item]:
        """Waits for the next batch; raises `WorkerCrashed` if the worker ends."""
        while not worker.ended.done():
            now = time.monotonic()
            batch, late = self.scheduler.take(now)
            for item in late:
                resolve_item(item, deadline_exceeded())
            if batch:
                if self.scheduler.waiting:
                    self.wakeup.set()  # let another process take the rest
                for item in batch:
                    self.labeled_metrics["queue"].observe(now - item.arrival_time)
                    self.statistics.durations["queue"].add(now - item.arrival_time)
                return batch
            self.wakeup.clear()
            due = self.scheduler.next_batch_time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(0.0, due - now)):
                    await self.wakeup.wait()
        raise WorkerCrashed

    async def _compute_batch(self, number: int, worker: Worker, batch: list[Item]) -> None:
        """Computes one batch and resolves every item with its result or error."""
        started = time.monotonic()
        expected = self.scheduler.service_time.expected(len(batch)) + sum(item.seconds for item in batch)
        self.free_at[number] = started + expected
        requests = [item.request for item in batch]
        try:
            worker.send({**requests[0], "shape": [len(batch), *batch[0].payload.shape]}, [i.payload for i in batch])
            document, payload = await self._receive(worker, batch, started + expected)
            if "error" in document:
                failure = (bad_request if document["is_usage_error"] else internal_error)(document["error"])
                results: list[Any] = [failure] * len(batch)
            else:
                results = split_results(document, payload, len(batch))
                self._observe_batch(requests, time.monotonic() - started, document["seconds"])
        except BaseException as error:
            is_over = isinstance(error, WorkerCrashed | WorkAbandoned | OSError | asyncio.CancelledError)
            if isinstance(error, WorkAbandoned) and (elapsed := time.monotonic() - started) > expected:
                self.scheduler.service_time.observe(requests, elapsed)  # it took at least this time
            for item in batch:
                resolve_item(item, worker_crashed() if is_over else internal_error("the model's answer is not valid"))
            raise
        for item, result in zip(batch, results, strict=True):
            resolve_item(item, result)

    def _observe_batch(self, requests: Sequence[dict[str, Any]], seconds: float, computing_seconds: float) -> None:
        """Learns from the duration of a batch and counts it."""
        self.scheduler.service_time.observe(requests, seconds)
        self.labeled_metrics["compute"].observe(computing_seconds)
        self.labeled_metrics["batch"].observe(len(requests))
        self.statistics.add_batch(len(requests), computing_seconds)

    async def _receive(self, worker: Worker, batch: Sequence[Item], expected_end: float) -> Message:
        """Returns the answer; kills the process and raises `WorkAbandoned` if it works on and no client waits."""
        answer = asyncio.create_task(worker.receive())
        waiters = asyncio.create_task(asyncio.wait([item.future for item in batch]))
        try:
            await asyncio.wait({answer, waiters}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and expected_end - time.monotonic() < self.start_seconds:
                await asyncio.wait({answer}, timeout=self.start_seconds)  # a new process would not be faster
            if answer.done():
                return answer.result()
            worker.kill()
            raise WorkAbandoned
        finally:
            answer.cancel()
            waiters.cancel()
            await asyncio.gather(answer, waiters, return_exceptions=True)


def split_results(document: dict[str, Any], payload: bytes, batch_size: int) -> list[Any]:
    """Splits an answer into results per item: rows of logits, or the only item's document and payload."""
    if "outputs" not in document:
        return [(document, payload)]
    rows_BY = np.frombuffer(payload, np.float32).reshape(batch_size, document["outputs"])
    is_finite_B = np.isfinite(rows_BY).min(axis=1)
    return [
        row_Y if is_finite else internal_error("the model's output for this image is not finite")
        for row_Y, is_finite in zip(rows_BY, is_finite_B, strict=True)
    ]


def resolve_item(item: Item, result: Any) -> None:
    """Sets the result or error of an item's future, unless the request was canceled."""
    if item.future.done():
        return
    if isinstance(result, RequestError):
        item.future.set_exception(replace(result))  # a copy per item: each raise adds to the exception's traceback
    else:
        item.future.set_result(result)
