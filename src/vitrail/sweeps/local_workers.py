"""The processes of a sweep on this machine: started, replaced where one is killed, stopped."""

import contextlib
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch

from vitrail import console
from vitrail.errors import UsageError, VitrailError
from vitrail.machine import count_cores
from vitrail.sweeps.worker import orphaned, run_worker

PATIENCE = 3  # processes, for each that there should be, that may die in a row without a trial being finished


class Crew(Protocol):
    """Whoever works on a sweep beside this process."""

    def look(self, finished: int) -> bool:
        """Replaces who was killed; False where all are through. Raises `VitrailError` where one cannot go on."""

    def stop(self) -> None:
        """Asks all to save and stop, and waits for them."""


class Processes:
    """So many processes of this machine, which share its cores."""

    def __init__(self, out: Path, n: int):
        self.out = out
        self.threads = max(1, count_cores() // n)
        self.context = multiprocessing.get_context("spawn")
        self.died, self.finished = 0, -1
        self.crew = [self.start() for _ in range(n)]

    def start(self) -> tuple[BaseProcess, Connection]:
        """One more."""
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=join, args=(str(self.out), os.getpid(), self.threads, theirs))
        process.start()
        theirs.close()
        return process, ours

    def look(self, finished: int) -> bool:
        """Replaces who was killed; False where all are through. Raises `VitrailError` where one cannot go on."""
        if finished != self.finished:
            self.died, self.finished = 0, finished
        for i, (process, pipe) in enumerate(self.crew):
            code = process.exitcode
            if code is None or code == 0:
                continue
            if code > 0:
                raise said(pipe)
            self.died += 1
            if self.died > PATIENCE * len(self.crew):
                raise VitrailError(
                    f"the sweep's processes are killed (signal {-code}) before they finish a trial",
                    "does the memory suffice? Try fewer --processes, or a smaller --image-cache-gib",
                )
            console.log(f"process {process.pid} was killed (signal {-code}); another one takes its trial up")
            self.crew[i] = self.start()
        return any(process.exitcode is None for process, _ in self.crew)

    def stop(self) -> None:
        """Asks all to save and stop, and waits for them."""
        for process, _ in self.crew:
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, signal.SIGTERM)
        for process, pipe in self.crew:
            process.join()
            pipe.close()


def said(pipe: Connection) -> VitrailError:
    """Why a process cannot go on."""
    try:
        kind, sentence, hint = pipe.recv() if pipe.poll() else ("", "a process of the sweep ended by itself", None)
    except (EOFError, OSError):
        kind, sentence, hint = "", "a process of the sweep ended by itself", None
    return (UsageError if kind == "UsageError" else VitrailError)(sentence, hint)


def join(out: str, parent: int, threads: int, pipe: Connection) -> None:
    """What each process does: it joins the sweep, until no trial is left or the process that started it is gone."""
    console.quiet = True
    torch.set_num_threads(threads)
    try:
        run_worker(out, going_on=lambda: not orphaned(parent))
    except VitrailError as error:
        tell(pipe, (type(error).__name__, error.sentence, error.hint))
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(1) from None


def tell(pipe: Connection, message: tuple[Any, ...]) -> None:
    """Sends a message to a process that may be gone."""
    with contextlib.suppress(OSError):
        pipe.send(message)
