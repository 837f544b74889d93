"""Prediction on the CPU: as many processes as cores, each with a model, one thread, and one part at a time."""

import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from vitrail.errors import VitrailError
from vitrail.prediction.listing import Part
from vitrail.prediction.part_job import PartJob
from vitrail.processes import (
    FORK_ON_LINUX,
    CrashBudget,
    Exited,
    Failed,
    ParentLink,
    WorkerProcess,
    start_worker,
    wait_for_messages,
)

MAX_CRASHES = 3  # per part, and of processes that have no part yet


@dataclass(frozen=True)
class Ready:
    """The worker has loaded the model."""


@dataclass(frozen=True)
class BatchPredicted:
    """The worker has predicted one batch of its part."""

    images: int


@dataclass(frozen=True)
class PartWritten:
    """The worker has written its part."""


def predict_parts(parent: ParentLink, job: PartJob) -> None:
    """Predicts the parts that the parent sends; the main function of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent handles it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(job.model.threads or 1)
    classifier = job.load_classifier()
    parent.send(Ready())
    while True:
        part: Part = parent.receive()
        job.predict_part(classifier, part, on_batch=lambda images: parent.send(BatchPredicted(images)))
        parent.send(PartWritten())


@dataclass
class PoolWorker:
    """A process and the part it works on."""

    process: WorkerProcess
    part: Part | None = None
    images_done: int = 0  # of this part
    is_ready: bool = False


class CpuPool:
    """Processes that share the parts. A process that dies is replaced, and its part is predicted again."""

    def __init__(self, job: PartJob, parts: Sequence[Part], processes: int, on_images: Callable[[int], object]):
        self.job = job
        self.size = min(processes, len(parts))
        self.pending = deque(parts)
        self.on_images = on_images
        self.workers: list[PoolWorker] = []
        self.crashes = CrashBudget(MAX_CRASHES)

    def run(self) -> None:
        """Predicts all parts; raises `VitrailError` for the first failure."""
        try:
            while self.pending or self._busy_workers():
                self.start_workers()
                self.assign_parts()
                ready = wait_for_messages([worker.process for worker in self.workers])
                for worker in [worker for worker in self.workers if worker.process in ready]:
                    self.handle_message(worker)
        finally:
            for worker in self.workers:
                worker.process.terminate()
            for worker in self.workers:
                worker.process.close()

    def start_workers(self) -> None:
        """Starts as many processes as there is work for, up to the size of the pool."""
        while len(self.workers) < min(self.size, len(self.pending) + self._busy_workers()):
            process = start_worker(predict_parts, self.job, method=FORK_ON_LINUX, daemon=True)
            self.workers.append(PoolWorker(process))

    def assign_parts(self) -> None:
        """Gives every idle worker a part."""
        for worker in self.workers:
            if worker.is_ready and worker.part is None and self.pending:
                worker.part = self.pending.popleft()
                worker.process.send(worker.part)

    def handle_message(self, worker: PoolWorker) -> None:
        """Acts on the next message of a worker; raises the error of one that has failed."""
        match worker.process.receive():
            case Ready():
                worker.is_ready = True
            case BatchPredicted(images):
                worker.images_done += images
                self.on_images(images)
            case PartWritten():
                worker.part, worker.images_done = None, 0
            case Failed(error):
                raise error
            case Exited() as exited:
                self.replace_worker(worker, exited)

    def replace_worker(self, worker: PoolWorker, exited: Exited) -> None:
        """Puts the part of a dead worker back; raises `VitrailError` if that part has killed several."""
        self.workers.remove(worker)
        worker.process.close()
        self.on_images(-worker.images_done)
        part_number = worker.part.number if worker.part else None
        self.crashes.record(part_number)
        if worker.part:
            self.pending.appendleft(worker.part)
        if self.crashes.is_exhausted(part_number):
            raise VitrailError(
                f"a process died {MAX_CRASHES} times {self._describe_work(worker)}: {exited}",
                "memory may be short: use fewer --processes or a smaller --batch-size, then --resume",
            )

    def _busy_workers(self) -> int:
        return sum(worker.part is not None for worker in self.workers)

    def _describe_work(self, worker: PoolWorker) -> str:
        """Names the images of the batch that a worker was predicting."""
        if worker.part is None:
            return "before its first image"
        batches, number = self.job.batches(worker.part), worker.images_done // self.job.batch_size
        if number < len(batches):
            return f"on the images from {batches[number][0].path} to {batches[number][-1].path}"
        return f"while it wrote part {worker.part.number}"
