"""Talk goes to stderr: progress on a terminal, plain lines elsewhere. Results go to stdout, elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

err = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
quiet = False
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def say(text: str) -> None:
    """A line of talk."""
    if not quiet:
        err.print(visible(text), markup=False)


def visible(text: str) -> str:
    """The text with control characters written out: a class name of a stranger must not steer the terminal.

    Bytes of a name that is not UTF-8 are written out too, for no terminal can show them.
    """
    return printable(text.translate(CONTROL))


def printable(text: str) -> str:
    """The text with each byte that is not UTF-8 written out as JSON does, \\udcff for 255."""
    return text.encode(errors="backslashreplace").decode()


class Bar:
    """A progress bar that can be told more about how it goes."""

    def __init__(self, progress: Progress | None, task: int):
        self.progress = progress
        self.task = task

    def tick(self, n: int = 1, note: str | None = None) -> None:
        """`n` more are done."""
        if self.progress:
            self.progress.update(self.task, advance=n, **({} if note is None else {"note": note}))  # type: ignore[arg-type]

    def set(self, done: int, total: int) -> None:
        """`done` of `total` are done, where the total was not known before."""
        if self.progress:
            self.progress.update(self.task, completed=done, total=total)  # type: ignore[arg-type]


@contextmanager
def bar(doing: str, total: int) -> Iterator[Bar]:
    """A progress bar on a terminal; elsewhere nothing, for lines of progress are their caller's to choose."""
    if quiet or not err.is_terminal:
        yield Bar(None, 0)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        yield Bar(progress, progress.add_task(doing, total=total, note=""))
