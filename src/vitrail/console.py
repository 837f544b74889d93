"""Progress and messages on stderr: progress bars on a terminal and in a notebook, plain lines elsewhere.

Results go to stdout.
"""

from __future__ import annotations

import html
import logging
import multiprocessing
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from io import StringIO
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

stderr = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
quiet = False
NOTEBOOK_INTERVAL_S = 0.2  # between two pictures of a bar in a notebook
LINE_INTERVAL_S = 30.0  # without a terminal, progress prints a line if nothing was printed for this long
last_log_time = 0.0
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def log(text: str) -> None:
    """Prints a line to stderr, unless `quiet` is set."""
    global last_log_time
    if not quiet:
        stderr.print(escape_control_characters(text), markup=False)
        last_log_time = time.monotonic()


def hide_warnings(package: str) -> None:
    """Adds a filter that hides the warnings of a package; the other filters of the process stay.

    `warnings.catch_warnings` would replace the filters of all threads.
    """
    if warning_filter(package) not in warnings.filters:
        warnings.filterwarnings("ignore", module=rf"{package}\.")


def warning_filter(package: str) -> tuple[str, None, type[Warning], re.Pattern[str], int]:
    """Returns the filter of `warnings` that hides the warnings of a package."""
    return "ignore", None, Warning, re.compile(rf"{package}\."), 0


def escape_control_characters(text: str) -> str:
    """Returns the text with control characters escaped, so that a class name or path cannot control the terminal.

    Undecodable bytes of file names are escaped too.
    """
    return escape_undecodable_bytes(text.translate(CONTROL))


def escape_undecodable_bytes(text: str) -> str:
    """Returns the text with undecodable bytes (surrogates) escaped as in JSON: \\udcff for 255."""
    return text.encode(errors="backslashreplace").decode()


class ProgressBar:
    """A progress bar on a terminal; elsewhere a line when nothing was printed for `LINE_INTERVAL_S`."""

    def __init__(self, description: str, total: int | None, progress: Progress | None = None):
        self.description = description
        self.total = total
        self.done = self.initial = 0
        self.note = ""
        self.started = time.monotonic()
        self.progress = progress
        self.task = progress.add_task(description, total=total, note="") if progress else TaskID(0)

    def start_from(self, done: int) -> None:
        """Sets what was done earlier, which does not count for the speed."""
        self.initial = done
        self.advance(done)

    def advance(self, n: int = 1, note: str | None = None) -> None:
        self.done += n
        self.note = self.note if note is None else note
        self._show()

    def update(self, done: int, total: int | None) -> None:
        """Sets both numbers, for work whose total becomes known later; None if it is still unknown."""
        self.done, self.total = done, total
        self._show()

    def _show(self) -> None:
        if self.progress:
            self.progress.update(self.task, completed=self.done, total=self.total, note=self.note)
            return
        now = time.monotonic()
        finished = self.total is not None and self.done >= self.total
        is_due = now - max(self.started, last_log_time) >= LINE_INTERVAL_S
        if is_due and self.done > self.initial and not finished:
            log(self._line(now - self.started))

    def _line(self, seconds: float) -> str:
        """Returns the description, the progress, the speed and the time left."""
        rate = (self.done - self.initial) / max(seconds, 1e-9)
        parts = [f"{self.description}: {self.done:,}" + (f" of {self.total:,}" if self.total else "")]
        if rate >= 1:
            parts.append(f"{rate:,.0f} per second")
        if self.total and rate > 0:
            parts.append(f"{timedelta(seconds=round((self.total - self.done) / rate))} left")
        return ", ".join([*parts, self.note] if self.note else parts)

    def close(self) -> None:
        """Removes the bar where it can be removed."""


class NotebookBar(ProgressBar):
    """A progress bar below a cell of a notebook, which disappears at the end."""

    handle: Any = None
    shown = 0.0

    def _show(self) -> None:
        now = time.monotonic()
        if now - self.shown >= NOTEBOOK_INTERVAL_S:
            self.shown = now
            limits = f' value="{self.done}" max="{self.total}"' if self.total else ""
            text = html.escape(self._line(now - self.started))
            self._display(f'<progress{limits} aria-label="{text}"></progress> {text}')

    def close(self) -> None:
        if self.handle is not None:
            self._display("")

    def _display(self, text: str) -> None:
        from IPython.display import HTML, display  # a notebook has it

        if self.handle is None:
            self.handle = display(HTML(text), display_id=True)
        else:
            self.handle.update(HTML(text))


def is_notebook() -> bool:
    """Whether this is the kernel of a notebook. A fork of it is not: it must not use the kernel's connections."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    kernel = getattr(shell, "kernel", None)
    return kernel is not None and multiprocessing.parent_process() is None


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[ProgressBar]:
    """Shows the progress of the block; `total` is None if it is unknown."""
    if quiet or not stderr.is_terminal:
        bar = NotebookBar(description, total) if not quiet and is_notebook() else ProgressBar(description, total)
        try:
            yield bar
        finally:
            bar.close()
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


@contextmanager
def silence_output() -> Iterator[None]:
    """Inside, other libraries print nothing: no log below errors, no warnings, nothing on stdout and stderr."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(level)
