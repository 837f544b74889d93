"""Talk goes to stderr: progress on a terminal, plain lines elsewhere. Results go to stdout, elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

stderr = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
quiet = False
LINE_INTERVAL_S = 30.0  # seconds without a line after which work that goes on says how far it is
last_log_time = 0.0  # when the last one was said
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def log(text: str) -> None:
    """A line of talk."""
    global last_log_time
    if not quiet:
        stderr.print(escape_control_characters(text), markup=False)
        last_log_time = time.monotonic()


def escape_control_characters(text: str) -> str:
    """The text with control characters written out: a class name of a stranger must not steer the terminal.

    Bytes of a name that is not UTF-8 are written out too, for no terminal can show them.
    """
    return escape_undecodable_bytes(text.translate(CONTROL))


def escape_undecodable_bytes(text: str) -> str:
    """The text with each byte that is not UTF-8 written out as JSON does, \\udcff for 255."""
    return text.encode(errors="backslashreplace").decode()


class ProgressBar:
    """How far a piece of work is: a bar on a terminal, elsewhere a line after `EVERY` seconds without one."""

    def __init__(self, description: str, total: int | None, progress: Progress | None = None):
        self.description = description
        self.total = total
        self.done = self.initial = 0
        self.note = ""
        self.started = time.monotonic()
        self.progress = progress
        self.task = progress.add_task(description, total=total, note="") if progress else TaskID(0)

    def start_from(self, done: int) -> None:
        """So many were done before: they say nothing of how fast it goes."""
        self.initial = done
        self.advance(done)

    def advance(self, n: int = 1, note: str | None = None) -> None:
        """`n` more are done."""
        self.done += n
        self.note = self.note if note is None else note
        self._show()

    def update(self, done: int, total: int | None) -> None:
        """`done` of `total` are done, where the total was not known before; None where it is not known yet."""
        self.done, self.total = done, total
        self._show()

    def _show(self) -> None:
        if self.progress:
            self.progress.update(self.task, completed=self.done, total=self.total, note=self.note)
            return
        now = time.monotonic()
        over = self.total is not None and self.done >= self.total
        if now - max(self.started, last_log_time) >= LINE_INTERVAL_S and self.done > self.initial and not over:
            log(self._line(now - self.started))

    def _line(self, seconds: float) -> str:
        """What is being done, how far it is, how fast it goes, the time that is left."""
        rate = (self.done - self.initial) / max(seconds, 1e-9)
        parts = [f"{self.description}: {self.done:,}" + (f" of {self.total:,}" if self.total else "")]
        if rate >= 1:
            parts.append(f"{rate:,.0f} a second")
        if self.total:
            parts.append(f"{timedelta(seconds=round((self.total - self.done) / rate))} left")
        return ", ".join([*parts, self.note] if self.note else parts)


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[ProgressBar]:
    """A progress bar on a terminal, elsewhere a plain line now and then; `total` is None where it is not known."""
    if quiet or not stderr.is_terminal:
        yield ProgressBar(description, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True) as progress:
        yield ProgressBar(description, total, progress)
