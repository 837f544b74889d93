"""The worker processes of a sweep on this machine: started, restarted after a crash, stopped."""

from pathlib import Path
from typing import Protocol

import torch

from vitrail import console
from vitrail.errors import VitrailError
from vitrail.machine import count_cores
from vitrail.processes import CrashBudget, Failed, ParentLink, WorkerProcess, start_worker
from vitrail.sweeps.worker import run_worker

MAX_CRASHES_PER_WORKER = 3  # in a row, with no trial finished between


class SweepWorkers(Protocol):
    """Workers outside this process."""

    def supervise(self, finished_trials: int) -> bool:
        """Restarts crashed workers; false once all have ended. Raises `VitrailError` if one cannot continue."""

    def stop(self) -> None:
        """Asks all workers to save and stop, and waits for them."""


class LocalWorkers:
    """Worker processes that share the cores of this machine."""

    def __init__(self, out: Path, count: int):
        self.out = out
        self.threads = max(1, count_cores() // count)
        self.crashes = CrashBudget(limit=MAX_CRASHES_PER_WORKER * count + 1)
        self.finished_trials = -1
        self.workers = [self.start() for _ in range(count)]

    def start(self) -> WorkerProcess:
        """Starts one more worker."""
        return start_worker(join_sweep, str(self.out), self.threads)

    def supervise(self, finished_trials: int) -> bool:
        """Restarts crashed workers; false once all have ended. Raises `VitrailError` if one cannot continue."""
        if finished_trials != self.finished_trials:
            self.crashes.reset()
            self.finished_trials = finished_trials
        for i, worker in enumerate(self.workers):
            exit_code = worker.exit_code
            if exit_code is None or exit_code == 0:
                continue
            if exit_code > 0:
                raise worker_error(worker)
            self.crashes.record()
            if self.crashes.is_exhausted():
                raise VitrailError(
                    f"the sweep's processes are killed (signal {-exit_code}) before they finish a trial",
                    "is there enough memory? Try fewer --processes, or a smaller --image-cache-gib",
                )
            console.log(
                f"process {worker.process.pid} was killed (signal {-exit_code}); another one continues its trial"
            )
            self.workers[i] = self.start()
        return any(worker.exit_code is None for worker in self.workers)

    def stop(self) -> None:
        """Asks all workers to save and stop, and waits for them."""
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.close()


def worker_error(worker: WorkerProcess) -> VitrailError:
    """Why a worker has ended."""
    message = worker.receive()
    if isinstance(message, Failed) and isinstance(message.error, VitrailError):
        return message.error
    return VitrailError("a process of the sweep has ended with an error")


def join_sweep(parent: ParentLink, out: str, threads: int) -> None:
    """Runs a worker in a process of its own, which ends with its parent."""
    console.quiet = True
    torch.set_num_threads(threads)
    run_worker(out, should_continue=parent.is_alive)
