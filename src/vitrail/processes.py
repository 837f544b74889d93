"""Worker processes on this machine: start one, exchange messages, count crashes, end when the parent is gone.

A message is an instance of a dataclass; it is pickled, so it never comes from outside this program. A worker may also
send `Failed`; the parent reads `Exited` once a worker is gone.
"""

import multiprocessing
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from vitrail.errors import VitrailError
from vitrail.parts import plugins_for_processes
from vitrail.plugins import load_plugins

# A fork starts at once and shares memory. On other systems than Linux some libraries do not survive it.
FORK_ON_LINUX: Literal["fork", "spawn"] = "fork" if sys.platform.startswith("linux") else "spawn"
POLL_SECONDS = 1.0  # how often an idle worker checks that its parent is alive


@dataclass(frozen=True)
class Failed:
    """A worker's last message: the error that ended it."""

    error: Exception


@dataclass(frozen=True)
class Exited:
    """What the parent reads after a worker's last message."""

    exit_code: int

    def __str__(self) -> str:
        return (
            f"killed by {signal.Signals(-self.exit_code).name}" if self.exit_code < 0 else f"exit code {self.exit_code}"
        )


class ParentGone(Exception):
    """The process that started this worker has ended."""


class ParentLink:
    """The worker's end of the pipe."""

    def __init__(self, connection: Connection, parent_pid: int):
        self.connection = connection
        self.parent_pid = parent_pid

    def is_alive(self) -> bool:
        """Returns whether the parent still runs. The pipe cannot tell: forked siblings hold copies of its other end."""
        return os.getppid() == self.parent_pid

    def send(self, message: object) -> None:
        """Sends a message; raises `ParentGone`."""
        if not self.is_alive():
            raise ParentGone
        try:
            self.connection.send(message)
        except OSError:
            raise ParentGone from None

    def receive(self) -> Any:
        """Waits for a message; raises `ParentGone`."""
        try:
            while not self.connection.poll(POLL_SECONDS):
                if not self.is_alive():
                    raise ParentGone
            return self.connection.recv()
        except (EOFError, OSError):
            raise ParentGone from None


@dataclass(eq=False)
class WorkerProcess:
    """The parent's view of a worker."""

    process: Any  # of multiprocessing; its class depends on the start method
    connection: Connection

    @property
    def exit_code(self) -> int | None:
        """None while the worker runs, a negative signal number if a signal killed it."""
        code: int | None = self.process.exitcode
        return code

    def send(self, message: object) -> None:
        """Sends a message. A worker that has just died gets none: the next `receive` returns `Exited`."""
        with suppress(OSError):
            self.connection.send(message)

    def has_message(self) -> bool:
        """Returns whether `receive` returns at once."""
        return self.connection.poll()

    def receive(self) -> Any:
        """Waits for the next message; `Exited` after the last one."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return Exited(self.process.exitcode or 0)

    def terminate(self) -> None:
        """Sends SIGTERM to a worker that still runs."""
        self.process.terminate()

    def close(self) -> None:
        """Waits until the worker has ended and closes the pipe."""
        self.process.join()
        self.connection.close()


def start_worker(
    target: Callable[..., None], *arguments: Any, method: Literal["fork", "spawn"] = "spawn", daemon: bool = False
) -> WorkerProcess:
    """Starts a process that has the plugins of this one and calls `target(parent, *arguments)` with a `ParentLink`.

    A `VitrailError` of `target` reaches the parent as `Failed`, and so does any other error after its traceback is
    printed; the exit code is then 1. A worker that loses its parent ends silently. A daemon may start no processes.
    """
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    plugins = plugins_for_processes()
    process = context.Process(target=_run, args=(target, theirs, os.getpid(), plugins, arguments), daemon=daemon)
    process.start()
    theirs.close()
    return WorkerProcess(process, ours)


def wait_for_messages(workers: Sequence[WorkerProcess]) -> list[WorkerProcess]:
    """Waits until `receive` returns at once for at least one worker; returns all such workers, in order."""
    ready = wait([worker.connection for worker in workers])
    return [worker for worker in workers if worker.connection in ready]


class CrashBudget:
    """Counts crashes by what the crashed worker was doing."""

    def __init__(self, limit: int):
        self.limit = limit
        self.crash_counts: Counter[Hashable] = Counter()

    def record(self, cause: Hashable = None) -> None:
        """Counts a crash."""
        self.crash_counts[cause] += 1

    def is_exhausted(self, cause: Hashable = None) -> bool:
        """Returns whether this cause has reached the limit."""
        return self.crash_counts[cause] >= self.limit

    def reset(self) -> None:
        """Forgets all crashes, after progress."""
        self.crash_counts.clear()


def _run(
    target: Callable[..., None],
    connection: Connection,
    parent_pid: int,
    plugins: Sequence[str],
    arguments: tuple[Any, ...],
) -> None:
    parent = ParentLink(connection, parent_pid)
    try:
        load_plugins(plugins)
        target(parent, *arguments)
    except ParentGone:
        return
    except KeyboardInterrupt:
        raise SystemExit(1) from None
    except Exception as error:
        if not isinstance(error, VitrailError):
            traceback.print_exc()
        with suppress(ParentGone):
            parent.send(Failed(error))
        raise SystemExit(1) from None
