"""A queue and the processes that empty it: batches out, answers back to whoever waits, dead processes replaced."""

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

MAX_BATCH_S = 120.0  # seconds after which a process that does not answer is killed
MAX_SETUP_S = 1800.0  # the same for what is done once: an ONNX file, the page
MAX_RESTART_DELAY_S = 5.0  # seconds between two attempts to start a process that will not


class WorkerCrashed(Exception):
    """The process ended, or was ended because it did not answer."""


class Worker:
    """One process: a message to it, its answer back. `lost` is done once the process has ended, asked or not."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader = reader
        self.writer = writer
        self.hello: dict[str, Any] = {}
        self.answers: asyncio.Queue[Message] = asyncio.Queue()
        self.lost = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                self.answers.put_nowait(await receive_message_async(self.reader))

    @classmethod
    async def start(cls, spawn: Callable[[], Any]) -> "Worker":
        """A process that is warm; raises `VitrailError` with its own words where it cannot, `WorkerLost` if it died.

        Raises `OSError` where the system gives no process.
        """
        worker = cls(*await asyncio.open_connection(sock=spawn()))
        try:
            worker.hello = (await worker.receive())[0]  # its number alone, so that it can be killed if it gets stuck
            worker.hello |= (await worker.receive())[0]
            if "error" in worker.hello:
                raise error_from(worker.hello)
        except BaseException:
            worker.close()
            raise
        return worker

    def send(self, document: dict[str, Any], parts: list[Any]) -> None:
        """Sends a message."""
        self.writer.writelines(pack_message(document, parts))

    async def receive(self, within: float | None = None) -> Message:
        """Waits so many seconds (`STUCK`) for the answer; raises `WorkerLost` where there will be none."""
        within = within or MAX_BATCH_S
        coming = asyncio.create_task(self.answers.get())
        try:
            await asyncio.wait({coming, self.lost}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                return coming.result()
        finally:
            coming.cancel()
        if not self.lost.done():
            log("worker_stuck", pid=self.hello.get("pid"), seconds=within)
            with contextlib.suppress(ProcessLookupError, KeyError):
                os.kill(self.hello["pid"], signal.SIGKILL)
        raise WorkerCrashed

    def close(self) -> None:
        """The process ends once it sees that nobody is left."""
        self.lost.cancel()
        self.writer.close()


class WorkerPool:
    """`processes` that `spawn` starts answer what `ask` puts in the queue, in batches where `most` is above one.

    A process that ends is replaced at once. Whoever was in its batch is told so; whoever waits goes on waiting.
    """

    def __init__(
        self, name: str, task: str, spawn: Callable[[], Any], batcher: Scheduler, metrics: Metrics, processes: int = 1
    ):
        self.name = name
        self.task = task
        self.spawn = spawn
        self.batcher = batcher
        self.metrics = metrics
        self.processes = processes
        self.statistics = Statistics()
        self.workers: dict[int, Worker] = {}
        self.running: list[asyncio.Task[None]] = []
        self.news = asyncio.Event()
        self.began: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.pace = 0.05  # seconds an image, lately
        labels = (name, task)
        self.seen = {k: getattr(metrics, k).labels(*labels) for k in ("queue", "compute", "batch", "restarts")}
        metrics.waiting.labels(*labels).set_function(lambda: len(batcher))

    @property
    def ready(self) -> bool:
        """Whether there is a process that is warm."""
        return bool(self.workers)

    async def open(self) -> dict[str, Any]:
        """Starts the processes; gives the first one's hello, or raises what kept it from starting."""
        self.running = [asyncio.create_task(self._run_worker(number)) for number in range(self.processes)]
        return await asyncio.shield(self.began)

    async def close(self) -> None:
        """Ends the processes; whoever still waits is told."""
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)
        for item in list(self.batcher.waiting):
            resolve(item, worker_crashed())

    async def submit(self, items: list[Item], deadline: float) -> list[Any]:
        """The answers to these, in order: all of them, or the `Refusal` that the first to fail got.

        Whoever waits here and is cancelled takes its items along.
        """
        loop = asyncio.get_running_loop()
        for item in items:
            item.answer = loop.create_future()
        try:
            self.batcher.add(items, time.monotonic())
        except QueueFull:
            raise overloaded(self.pace * len(self.batcher)) from None
        self.news.set()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.gather(*(item.answer for item in items))
        except TimeoutError:
            raise deadline_exceeded() from None
        finally:
            for item in items:
                self.batcher.cancel(item)
                item.answer.cancel()

    async def _run_worker(self, number: int) -> None:
        """One process after another, for ever."""
        pause = 0.0
        while True:
            await asyncio.sleep(pause)
            try:
                worker = await Worker.start(self.spawn)
            except Exception as error:  # whatever it was: another is tried, or nobody would ever be answered again
                why = f"{self.name} cannot be started" + (f": {error}" if str(error) else "")
                if not self.began.done():
                    self.began.set_exception(error if isinstance(error, VitrailError) else VitrailError(why))
                log("worker_not_started", model=self.name, task=self.task, error=str(error))
                pause = min(max(0.1, 2 * pause), MAX_RESTART_DELAY_S)
                continue
            self.batcher.max_batch_size = worker.hello["batch"]
            if not self.began.done():
                self.began.set_result(worker.hello)
            self.workers[number], pause = worker, 0.0
            worker.lost.add_done_callback(lambda _: self.news.set())
            log(
                "worker_ready",
                model=self.name,
                task=self.task,
                pid=worker.hello["pid"],
                batch=self.batcher.max_batch_size,
            )
            try:
                while True:
                    await self._compute_batch(worker, await self._next_batch(worker))
            except (WorkerCrashed, OSError):
                self.seen["restarts"].inc()
                log("worker_ended", model=self.name, task=self.task, pid=worker.hello["pid"])
            finally:
                del self.workers[number]
                worker.close()

    async def _next_batch(self, worker: Worker) -> list[Item]:
        """Waits for the next batch; raises `WorkerLost` where there is nobody left to run it."""
        while not worker.lost.done():
            now = time.monotonic()
            batch, late = self.batcher.take(now)
            for item in late:
                resolve(item, deadline_exceeded())
            if batch:
                if self.batcher.waiting:
                    self.news.set()  # for the other processes
                for item in batch:
                    self.seen["queue"].observe(now - item.arrived)
                    self.statistics.spans["queue"].add(now - item.arrived)
                return batch
            self.news.clear()
            due = self.batcher.next_batch_time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(0.0, due - now)):
                    await self.news.wait()
        raise WorkerCrashed

    async def _compute_batch(self, worker: Worker, batch: list[Item]) -> None:
        """One batch through the process; every item gets its own answer or what kept it from one."""
        try:
            ask = {**batch[0].ask, "shape": [len(batch), *batch[0].parts.shape]}
            worker.send(ask, [item.parts for item in batch])
            document, parts = await worker.receive()
        except BaseException:  # the process was lost, or the server is closing
            for item in batch:
                resolve(item, worker_crashed())
            raise
        if "error" in document:
            refused = (bad_request if document["wrong_use"] else internal_error)(document["error"])
            for item in batch:
                resolve(item, refused)
            return
        seconds = document["seconds"]
        self.pace += 0.2 * (seconds / len(batch) - self.pace)
        self.seen["compute"].observe(seconds)
        self.seen["batch"].observe(len(batch))
        self.statistics.ran(len(batch), seconds)
        for item, answer in zip(batch, self.split_results(document, parts, len(batch)), strict=True):
            resolve(item, answer)

    @staticmethod
    def split_results(document: dict[str, Any], parts: bytes, images: int) -> list[Any]:
        """One message's answers, item by item: rows of logits, or the document and its bytes."""
        if "outputs" not in document:
            return [(document, parts)]
        rows_BY = np.frombuffer(parts, np.float32).reshape(images, document["outputs"])
        good = np.isfinite(rows_BY).min(axis=1)
        return [
            row_Y if fine else internal_error("the model's answer to this image is not a finite number")
            for row_Y, fine in zip(rows_BY, good, strict=True)
        ]


def error_from(document: dict[str, Any]) -> VitrailError:
    """The error that a process answered with, of the kind that it was there."""
    return (UsageError if document["wrong_use"] else VitrailError)(document["error"])


def resolve(item: Item, answer: Any) -> None:
    """Gives whoever waits the answer, or raises the refusal there; who has gone is left alone."""
    if item.answer.done():
        return
    if isinstance(answer, RequestError):
        item.answer.set_exception(replace(answer))  # each its own: an exception keeps where it was raised
    else:
        item.answer.set_result(answer)
