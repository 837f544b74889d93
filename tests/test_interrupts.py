"""Signals: asked for while a run needs them, and given back as they were."""

import signal

import pytest

from vitrail.interrupts import catch_stop_signals


def test_a_handler_that_python_does_not_know_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch):
    """Such a handler is set by a program that embeds Python, before Python begins; here Python only says so."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else before[0])
        with catch_stop_signals() as stop:
            patch.undo()
            assert signal.getsignal(signal.SIGTERM) is before[1]
            signal.raise_signal(signal.SIGINT)
            assert stop.requested
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
