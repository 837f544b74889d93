"""Signal handlers: set while a run needs them, then restored."""

import signal

import pytest

from vitrail.interrupts import catch_stop_signals

pytestmark = pytest.mark.newest


def test_a_handler_not_set_from_python_is_not_replaced(monkeypatch: pytest.MonkeyPatch):
    """A program that embeds Python can set such a handler; here `getsignal` only reports one."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else before[0])
        with catch_stop_signals() as stop:
            patch.undo()
            assert signal.getsignal(signal.SIGTERM) is before[1]
            signal.raise_signal(signal.SIGINT)
            assert stop.requested
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
