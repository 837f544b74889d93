"""The worker pool: sends batches from the queue to worker processes, resolves futures, and replaces dead processes."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from vitrail.errors import UsageError, VitrailError
from vitrail.serving.errors import (
    RequestError,
    bad_request,
    deadline_exceeded,
    internal_error,
    overloaded,
    worker_crashed,
)
from vitrail.serving.logs import log
from vitrail.serving.messages import Message, pack_message, receive_message_async
from vitrail.serving.metrics import Metrics, Statistics
from vitrail.serving.scheduler import Item, QueueFull, Scheduler

MAX_BATCH_S = 120.0  # a process that does not answer a message within this time is killed
MAX_SETUP_S = 1800.0  # the same for the one-time operations: ONNX export and web page
MAX_RESTART_DELAY_S = 5.0  # longest pause between two attempts to start a process


class WorkerCrashed(Exception):
    """The worker process ended, or was killed because it did not answer."""


class Worker:
    """The connection to one worker process. The task `ended` is done when the process has ended."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader = reader
        self.writer = writer
        self.hello: dict[str, Any] = {}
        self.answers: asyncio.Queue[Message] = asyncio.Queue()
        self.ended = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                self.answers.put_nowait(await receive_message_async(self.reader))

    @classmethod
    async def start(cls, spawn: Callable[[], Any]) -> "Worker":
        """Starts a process and waits for its warm-up.

        Raises the process's own `VitrailError` if it fails, `WorkerCrashed` if it dies, and `OSError` if the system
        cannot create it.
        """
        worker = cls(*await asyncio.open_connection(sock=spawn()))
        try:
            worker.hello = (await worker.receive())[0]  # only its pid, to kill it if the warm-up hangs
            worker.hello |= (await worker.receive())[0]
            if "error" in worker.hello:
                raise parse_error(worker.hello)
        except BaseException:
            worker.close()
            raise
        return worker

    def send(self, document: dict[str, Any], parts: list[Any]) -> None:
        self.writer.write(pack_message(document, parts))

    async def receive(self, timeout_s: float | None = None) -> Message:
        """Returns the next answer.

        Raises `WorkerCrashed` if the process ends. A process that does not answer within `timeout_s` (default:
        `MAX_BATCH_S`) is killed.
        """
        timeout_s = timeout_s or MAX_BATCH_S
        answer = asyncio.create_task(self.answers.get())
        try:
            await asyncio.wait({answer, self.ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
        finally:
            answer.cancel()
        if not self.ended.done():
            log("worker_stuck", pid=self.hello.get("pid"), seconds=timeout_s)
            with contextlib.suppress(ProcessLookupError, KeyError):
                os.kill(self.hello["pid"], signal.SIGKILL)
        raise WorkerCrashed

    def close(self) -> None:
        """Closes the connection, which ends the process."""
        self.ended.cancel()
        self.writer.close()


class WorkerPool:
    """Runs `processes` workers, started by `spawn`, which compute the items of one queue in batches.

    A process that ends is replaced at once. The requests of its batch fail; waiting requests are not affected.
    """

    def __init__(
        self, name: str, task: str, spawn: Callable[[], Any], scheduler: Scheduler, metrics: Metrics, processes: int = 1
    ):
        self.name = name
        self.task = task
        self.spawn = spawn
        self.scheduler = scheduler
        self.metrics = metrics
        self.processes = processes
        self.statistics = Statistics()
        self.workers: dict[int, Worker] = {}
        self.worker_tasks: list[asyncio.Task[None]] = []
        self.wakeup = asyncio.Event()
        self.first_start: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.seconds_per_image = 0.05  # moving average
        labels = (name, task)
        self.labeled_metrics = {
            key: getattr(metrics, key).labels(*labels) for key in ("queue", "compute", "batch", "restarts")
        }
        metrics.waiting.labels(*labels).set_function(lambda: len(scheduler))

    @property
    def is_ready(self) -> bool:
        """Whether at least one process has finished its warm-up."""
        return bool(self.workers)

    async def open(self) -> dict[str, Any]:
        """Starts the processes; returns the first hello message or raises the error of the first failed start."""
        self.worker_tasks = [asyncio.create_task(self._run_worker(number)) for number in range(self.processes)]
        return await asyncio.shield(self.first_start)

    async def close(self) -> None:
        """Ends the processes; waiting requests fail."""
        for task in self.worker_tasks:
            task.cancel()
        await asyncio.gather(*self.worker_tasks, return_exceptions=True)
        for item in list(self.scheduler.waiting):
            resolve_item(item, worker_crashed())

    async def submit(self, items: list[Item], deadline: float) -> list[Any]:
        """Returns the results of all items in order, or raises the first item's `RequestError`.

        If the caller is canceled, the items leave the queue.
        """
        loop = asyncio.get_running_loop()
        for item in items:
            item.future = loop.create_future()
        try:
            self.scheduler.add(items, time.monotonic())
        except QueueFull:
            raise overloaded(self.seconds_per_image * len(self.scheduler)) from None
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
            await asyncio.sleep(pause)
            try:
                worker = await Worker.start(self.spawn)
            except Exception as error:  # retry after any error, else the model would never be served again
                message = f"{self.name} cannot be started" + (f": {error}" if str(error) else "")
                if not self.first_start.done():
                    self.first_start.set_exception(error if isinstance(error, VitrailError) else VitrailError(message))
                log("worker_not_started", model=self.name, task=self.task, error=str(error))
                pause = min(max(0.1, 2 * pause), MAX_RESTART_DELAY_S)
                continue
            self.scheduler.max_batch_size = worker.hello["batch_size"]
            if not self.first_start.done():
                self.first_start.set_result(worker.hello)
            self.workers[number], pause = worker, 0.0
            worker.ended.add_done_callback(lambda _: self.wakeup.set())
            log(
                "worker_ready",
                model=self.name,
                task=self.task,
                pid=worker.hello["pid"],
                batch=self.scheduler.max_batch_size,
            )
            try:
                while True:
                    await self._compute_batch(worker, await self._next_batch(worker))
            except (WorkerCrashed, OSError):
                self.labeled_metrics["restarts"].inc()
                log("worker_ended", model=self.name, task=self.task, pid=worker.hello["pid"])
            finally:
                del self.workers[number]
                worker.close()

    async def _next_batch(self, worker: Worker) -> list[Item]:
        """Waits for the next batch; raises `WorkerCrashed` if the worker ends."""
        while not worker.ended.done():
            now = time.monotonic()
            batch, expired = self.scheduler.take(now)
            for item in expired:
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

    async def _compute_batch(self, worker: Worker, batch: list[Item]) -> None:
        """Computes one batch and resolves every item with its result or error."""
        try:
            request = {**batch[0].request, "shape": [len(batch), *batch[0].payload.shape]}
            worker.send(request, [item.payload for item in batch])
            document, payload = await worker.receive()
        except BaseException:  # the process died, or the server is shutting down
            for item in batch:
                resolve_item(item, worker_crashed())
            raise
        if "error" in document:
            error = (bad_request if document["is_usage_error"] else internal_error)(document["error"])
            for item in batch:
                resolve_item(item, error)
            return
        seconds = document["seconds"]
        self.seconds_per_image += 0.2 * (seconds / len(batch) - self.seconds_per_image)
        self.labeled_metrics["compute"].observe(seconds)
        self.labeled_metrics["batch"].observe(len(batch))
        self.statistics.add_batch(len(batch), seconds)
        for item, result in zip(batch, self.split_results(document, payload, len(batch)), strict=True):
            resolve_item(item, result)

    @staticmethod
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


def parse_error(document: dict[str, Any]) -> VitrailError:
    """Returns the error of an answer, with the type that it had in the worker."""
    return (UsageError if document["is_usage_error"] else VitrailError)(document["error"])


def resolve_item(item: Item, result: Any) -> None:
    """Sets the result or error of an item's future, unless the request was canceled."""
    if item.future.done():
        return
    if isinstance(result, RequestError):
        item.future.set_exception(replace(result))  # a copy per item: each raise adds to the exception's traceback
    else:
        item.future.set_result(result)
