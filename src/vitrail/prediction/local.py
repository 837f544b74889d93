"""The parts on this machine: as many processes as cores, each with a model, a thread and a part of its own.

On a GPU it is one process that predicts, and the others read for it.
"""

import multiprocessing
import os
import signal
import sys
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vitrail.data.loader import reader_died
from vitrail.data.preprocess import Preprocess
from vitrail.errors import VitrailError
from vitrail.machine import count_cores
from vitrail.prediction.folder import PartManifest
from vitrail.prediction.listing import Entry, Part
from vitrail.prediction.part_job import PartJob
from vitrail.prediction.rows import ImageBatch, Rows, predict_rows, read_batch

DEATHS = 3  # processes that one part may cost, or that may die before their first
# Forked processes are there at once; elsewhere than on Linux libraries do not bear it.
CONTEXT: Any = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")
Tell = Callable[[int, PartManifest | None], object]  # images predicted since the last time, and a part that is done


def predict_locally(task: PartJob, pieces: Sequence[Part], workers: int | None, tell: Tell) -> None:
    """Does the parts; raises `VitrailError` for what keeps one from being done, and stops the others then."""
    if task.model.device_type != "cpu":
        stream_to_gpu(task, pieces, max(1, count_cores() - 1) if workers is None else workers, tell)
    else:
        threads = task.model.threads or 1
        Crew(task, min(len(pieces), workers or max(1, count_cores() // threads)), deque(pieces), tell).run()


def work(task: PartJob, connection: Connection, parent: int) -> None:
    """A process: does the parts it is given, until the parent wants no more or is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what to do
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def tick(n: int) -> None:
        if os.getppid() != parent:
            os._exit(1)
        connection.send(n)

    try:
        torch.set_num_threads(task.model.threads or 1)
        classifier = task.open()
        connection.send(None)
        while True:
            while not connection.poll(1.0):
                tick(0)
            piece = connection.recv()
            if piece is None:
                return
            connection.send(task.predict_part(classifier, piece, tick))
    except (BrokenPipeError, ConnectionResetError, EOFError):
        return
    except Exception as error:
        if not isinstance(error, VitrailError):
            traceback.print_exc()
        connection.send(error)


@dataclass
class Worker:
    """A process as the parent sees it."""

    process: Any
    connection: Connection
    piece: Part | None = None
    images: int = 0  # of this part that are predicted
    ready: bool = False


@dataclass
class Crew:
    """Processes that share the parts; one that dies is replaced, and what it had in hand is done again."""

    task: PartJob
    size: int
    waiting: deque[Part]
    tell: Tell
    workers: list[Worker] = field(default_factory=list)
    deaths: Counter[int] = field(default_factory=Counter)

    def run(self) -> None:
        """Until all parts are done."""
        try:
            while self.waiting or any(worker.piece for worker in self.workers):
                while len(self.workers) < min(self.size, len(self.waiting) + sum(1 for w in self.workers if w.piece)):
                    self.workers.append(self.begun())
                self.hand_out()
                heard = wait([worker.connection for worker in self.workers])
                for worker in [worker for worker in self.workers if worker.connection in heard]:
                    self.hear(worker)
        finally:
            for worker in self.workers:
                worker.process.terminate()
            for worker in self.workers:
                worker.process.join()
                worker.connection.close()

    def begun(self) -> Worker:
        """A new process."""
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=work, args=(self.task, theirs, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        return Worker(process, ours)

    def hand_out(self) -> None:
        """Gives every process that has nothing to do a part, also one that a dead process had in hand."""
        for worker in self.workers:
            if worker.ready and not worker.piece and self.waiting:
                worker.piece = self.waiting.popleft()
                with suppress(OSError):  # it died meanwhile, and its end of the pipe will say so
                    worker.connection.send(worker.piece)

    def hear(self, worker: Worker) -> None:
        """Takes what a process says: that it is ready (None), images, a part that is done, or what went wrong."""
        try:
            said = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self.bury(worker)
            return
        if isinstance(said, Exception):
            raise said
        if isinstance(said, int):
            worker.images += said
            self.tell(said, None)
            return
        if isinstance(said, PartManifest):
            self.tell(0, said)
        worker.ready, worker.piece, worker.images = True, None, 0

    def bury(self, worker: Worker) -> None:
        """Puts back what a dead process had in hand; raises `VitrailError` where that has killed several."""
        self.workers.remove(worker)
        worker.process.join()
        worker.connection.close()
        self.tell(-worker.images, None)
        number = -1 if worker.piece is None else worker.piece.number
        self.deaths[number] += 1
        if worker.piece:
            self.waiting.appendleft(worker.piece)
        if self.deaths[number] < DEATHS:
            return
        code = worker.process.exitcode or 0
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        where = "before its first image"
        if worker.piece:
            batches, at = self.task.batches(worker.piece), worker.images // self.task.batch_size
            where = f"while it wrote part {worker.piece.number}"
            if at < len(batches):
                where = f"with images from {batches[at][0].path} to {batches[at][-1].path}"
        raise VitrailError(
            f"a process died {DEATHS} times {where}: {cause}",
            "often the memory is short: take fewer --workers or a smaller --batch, then --resume",
        )


class Batches(Dataset[tuple[Part, list[Entry], ImageBatch | VitrailError]]):
    """Batches of images by the part they belong to; asked for one, it gives it as pixels, or says why it cannot."""

    def __init__(self, preprocess: Preprocess):
        self.preprocess = preprocess

    def __getitems__(self, batch: tuple[Part, list[Entry]]) -> tuple[Part, list[Entry], ImageBatch | VitrailError]:
        piece, entries = batch
        try:
            return piece, entries, read_batch(entries, self.preprocess)
        except VitrailError as error:  # raised, torch would put the traceback into its sentence
            return piece, entries, error


class Keys:
    """All batches of all parts, one after another, none made before it is wanted."""

    def __init__(self, task: PartJob, pieces: Iterable[Part]):
        self.task, self.pieces = task, pieces

    def __iter__(self) -> Iterator[tuple[Part, list[Entry]]]:
        for piece in self.pieces:
            for entries in self.task.batches(piece):
                yield piece, entries


def stream_to_gpu(task: PartJob, pieces: Sequence[Part], readers: int, tell: Tell) -> None:
    """Does the parts one after another, while `readers` processes read ahead."""
    if task.model.threads:
        torch.set_num_threads(task.model.threads)
    classifier = task.open()
    loader: DataLoader[Any] = DataLoader(
        Batches(classifier.preprocess),
        batch_sampler=Keys(task, pieces),  # type: ignore[arg-type]  # any iterable is
        num_workers=readers,
        collate_fn=_as_is,
        worker_init_fn=_reader,
        multiprocessing_context=CONTEXT if readers else None,
    )
    found: list[Rows] = []
    batches = iter(loader)
    try:
        for piece, entries, reading in batches:
            if isinstance(reading, VitrailError):
                raise reading
            found.append(predict_rows(classifier, entries, reading, task.plan.top, task.plan.embedding))
            tell(len(entries), None)
            if sum(map(len, found)) == piece.images:
                tell(0, task.write_part(classifier, piece, found))
                found = []
    except RuntimeError as error:
        if not reader_died(error):
            raise
        raise VitrailError(
            "a process that reads images died", "often the memory is short: take fewer --workers, then --resume"
        ) from None


def _as_is(batch: Any) -> Any:
    return batch


def _reader(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
