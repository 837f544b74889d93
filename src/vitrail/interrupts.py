"""SIGINT and SIGTERM as a request, so that a run can finish its step and save."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vitrail.console import log
from vitrail.errors import VitrailError


class Interrupted(VitrailError):
    """A signal asked the run to stop; it was saved and can be resumed."""

    exit_code = 130


@dataclass
class StopRequest:
    """Whether a signal has come."""

    requested: bool = False


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Inside, SIGINT and SIGTERM ask instead of killing; the next one stops at once."""
    stop = StopRequest()

    def ask() -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        log("stopping after this step; once more to stop at once")

    with handle_signals(ask):
        yield stop


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises `KeyboardInterrupt` as SIGINT does."""

    def stop() -> None:
        raise KeyboardInterrupt

    with handle_signals(stop):
        yield


@contextmanager
def handle_signals(handler: Callable[[], None]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM call `react`.

    In a thread other than the main one, which may not set signal handlers, nothing changes; nor where a handler is none
    of Python's, which could not be put back.
    """
    before: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not None:
                before[number] = signal.signal(number, lambda number, frame: handler())
    except ValueError:
        before.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
