"""SIGINT and SIGTERM as a request to stop, so that a run can finish its step and save."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vitrail.console import log
from vitrail.errors import VitrailError


class Interrupted(VitrailError):
    """A signal stopped the run. The run was saved and can be resumed."""

    exit_code = 130


@dataclass
class StopRequest:
    """Whether a signal has requested a stop."""

    requested: bool = False


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Within the block, the first SIGINT or SIGTERM sets the request; the second raises `KeyboardInterrupt`."""
    stop = StopRequest()

    def request() -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        log("stopping after this step; press Ctrl-C again to stop at once")

    with handle_signals(request):
        yield stop


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Within the block, SIGTERM raises `KeyboardInterrupt`, as SIGINT does."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with handle_signals(interrupt):
        yield


@contextmanager
def handle_signals(handler: Callable[[], None]) -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM call `handler`.

    Nothing changes in a thread other than the main one, which may not set signal handlers, nor for a signal whose
    handler was not set from Python, since it could not be restored.
    """
    previous: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not None:
                previous[number] = signal.signal(number, lambda number, frame: handler())
    except ValueError:
        previous.clear()
    try:
        yield
    finally:
        for number, old_handler in previous.items():
            signal.signal(number, old_handler)
