"""Calls the hooks of callbacks, and keeps what they ask for: a stop, or the end of the run by an error."""

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from vitrail.callbacks.base import HOOKS, Callback, CallbackError, CallbackState, EndRun
from vitrail.console import log
from vitrail.errors import UsageError, VitrailError, did_you_mean, first_line
from vitrail.interrupts import Interrupted

Stop = dict[str, str]  # callback and reason


class CallbackCalls:
    """The callbacks of a run in one process."""

    def __init__(self, callbacks: Sequence[object], is_main: bool = True):
        self.named = {name: check_callback(callback) for name, callback in name_callbacks(callbacks).items()}
        self.is_main = is_main
        self.stop: Stop | None = None  # the first request in this process
        self.error: Exception | None = None  # the first error in this process, until it is raised
        self.states: dict[str, Any] = {}  # the last state of each callback that has one

    def has(self, hook: str) -> bool:
        """Whether any callback has the hook; the same in all processes."""
        return any(find_hook(callback, hook) for callback in self.named.values())

    def call(self, hook: str, make_state: Callable[[Callable[[str], None]], CallbackState]) -> None:
        """Calls the hook of each callback that this process calls; an error is kept in `error`.

        `make_state` returns the state for a function that takes the request for a stop.
        """
        for name, callback in self.named.items():
            function = find_hook(callback, hook)
            if function is None or not (self.is_main or getattr(callback, "every_process", False)):
                continue

            def request_stop(reason: str, name: str = name) -> None:
                self.stop = self.stop or {"callback": name, "reason": reason}

            try:
                function(make_state(request_stop))
            except Exception as error:
                self.error = self.error or describe_error(error, name, hook)

    def take_error(self) -> Exception | None:
        """Returns the kept error and forgets it."""
        error, self.error = self.error, None
        return error

    def state_dicts(self) -> dict[str, Any]:
        """Returns the state of each callback that has one, as JSON values; an error is kept, with the state before."""
        for name, callback in self.named.items():
            if not hasattr(callback, "state_dict"):
                continue
            try:
                self.states[name] = json.loads(json.dumps(callback.state_dict(), allow_nan=False))
            except Exception as error:
                self.error = self.error or describe_error(error, name, "state_dict")
        return dict(self.states)

    def load_state_dicts(self, states: dict[str, Any]) -> None:
        """Restores the callbacks from a checkpoint; raises `CallbackError`. One that is missing now is named."""
        for name, state in states.items():
            callback = self.named.get(name)
            if not hasattr(callback, "load_state_dict"):
                log(f"warning: the run was started with the callback {name}, which is not among the callbacks now")
                continue
            try:
                callback.load_state_dict(state)
            except Exception as error:
                raise describe_error(error, name, "load_state_dict") from error
        self.states = dict(states)


def name_callbacks(callbacks: Sequence[object]) -> dict[str, object]:
    """Names callbacks by their class; the second of a class gets #2 after its name."""
    named: dict[str, object] = {}
    for callback in callbacks:
        name = kind = type(callback).__name__
        number = 1
        while name in named:
            number += 1
            name = f"{kind}#{number}"
        named[name] = callback
    return named


def find_hook(callback: object, hook: str) -> Callable[[CallbackState], None] | None:
    """Returns the hook of a callback, or None if it has none or inherits the empty one of `Callback`."""
    function = getattr(callback, hook, None)
    is_empty = getattr(function, "__func__", None) is getattr(Callback, hook)
    return function if callable(function) and not is_empty else None


def check_callback(callback: object) -> object:
    """Returns the callback; raises `UsageError` if it is none, or has a state that no checkpoint can hold."""
    kind = callback.__name__ if inspect.isclass(callback) else type(callback).__name__
    if inspect.isclass(callback):
        raise UsageError(f"{kind} is a class, and a callback is an object", f"write {kind}(...)")
    names = {name for name in dir(callback) if name.startswith("on_") and callable(getattr(callback, name, None))}
    if isinstance(callback, Callback) and (unknown := sorted(names - {*HOOKS})):
        raise UsageError(f"{kind}.{unknown[0]} is not a hook and is never called", did_you_mean(unknown[0], HOOKS))
    if not any(find_hook(callback, hook) for hook in HOOKS):
        raise UsageError(f"{kind} is not a callback: it has none of the hooks", f"the hooks are {', '.join(HOOKS)}")
    if hasattr(callback, "state_dict") != hasattr(callback, "load_state_dict"):
        raise UsageError(f"the callback {kind} has only one of state_dict and load_state_dict", "write both, or none")
    if hasattr(callback, "state_dict"):
        try:
            json.dumps(callback.state_dict(), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the state of the callback {kind} is not JSON: {first_line(error)}") from None
    return callback


def describe_error(error: Exception, name: str, hook: str) -> Exception:
    """Returns the error that ends the run. What a callback raises to end the run is not changed."""
    if isinstance(error, EndRun | Interrupted):
        return error
    hint: str | None = None
    reason = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, VitrailError):
        reason, hint = error.sentence, error.hint
    described = CallbackError(f"the callback {name} failed in {hook}: {reason}", hint)
    described.__cause__ = error
    return described
