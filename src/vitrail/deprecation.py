"""Public names that will go: each warns, once per process, and names what to use instead."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def deprecated(*, since: str, removed_in: str, instead: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Returns a decorator of a function whose first call warns with `FutureWarning`, at the line of the caller.

    `since` is the version that deprecated it, `removed_in` the one that will not have it, `instead` what to use. Python
    shows a `FutureWarning` to everyone, a `DeprecationWarning` only to those who run tests.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        has_warned = False

        @wraps(function)
        def call(*arguments: P.args, **keywords: P.kwargs) -> R:
            nonlocal has_warned
            if not has_warned:
                has_warned = True
                text = f"{function.__qualname__} is deprecated since vitrail {since} and goes in {removed_in}"
                warnings.warn(f"{text}; use {instead}", FutureWarning, stacklevel=2)
            return function(*arguments, **keywords)

        return call

    return decorate
