"""SIGINT and SIGTERM as a request, so that a run can finish its step and save."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vitrail.console import say
from vitrail.errors import VitrailError


class Interrupted(VitrailError):
    """A signal asked the run to stop; it was saved and can be resumed."""

    exit_code = 130


@dataclass
class StopRequest:
    """Whether a signal has come."""

    came: bool = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside, SIGINT and SIGTERM ask instead of killing; the next one kills.

    In a thread other than the main one, which may not set signal handlers, nothing changes.
    """
    stop = StopRequest()
    before: dict[signal.Signals, Any] = {}

    def ask(number: int, frame: object) -> None:
        stop.came = True
        say("stopping after this step; once more to stop at once")
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:
        before.clear()
    try:
        yield stop
    finally:
        restore()
