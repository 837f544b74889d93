"""What a verb returns, and how it is printed."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from rich.console import Console

from vitrail import console

ANSWER_FILE = "VITRAIL_ANSWER"  # environment variable in processes that `launch` starts: the file for their answer


@dataclass
class Answer:
    """A verb's result: a JSON document, what to print for people (text or rich objects), and the exit code."""

    document: dict[str, Any]
    shown: list[Any] = field(default_factory=list)
    code: int = 0


class _Stdout(Console):
    """stdout for tables. By default rich exits with a code of its own if the reader closes the pipe."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


@contextmanager
def ignore_closed_stdout() -> Iterator[None]:
    """Within the block, a reader that closes our stdout, such as `head`, causes no error."""
    try:
        yield
        print(end="", flush=True)  # otherwise the interpreter fails at its end, with exit code 120
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_answer(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        print_json(answer.document)
        return
    stdout = _Stdout(highlight=False, markup=False, emoji=False)
    for part in answer.shown:
        if isinstance(part, str):
            stdout.print(console.escape_control_characters(part), markup=False, soft_wrap=True)
        else:
            stdout.print(part)


def print_json(document: dict[str, Any]) -> None:
    print(console.escape_undecodable_bytes(json.dumps(document, ensure_ascii=False, allow_nan=False)))
