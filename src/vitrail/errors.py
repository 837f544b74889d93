"""Errors for the user: one sentence that names the problem, and a hint that says what to do."""

import difflib
from collections.abc import Iterable

# torch raises a plain RuntimeError for memory: the texts of its allocators on a GPU and on a CPU
OUT_OF_MEMORY_TEXTS = ("out of memory", "not enough memory", "can't allocate memory")


class VitrailError(Exception):
    """The work found a problem: bad data, a damaged file, a diverged run (exit code 1)."""

    exit_code = 1

    def __init__(self, sentence: str, hint: str | None = None):
        super().__init__(sentence)
        self.sentence = sentence
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.sentence} ({self.hint})" if self.hint else self.sentence


class UsageError(VitrailError):
    """The request is wrong: a name does not exist, or options do not fit together (exit code 2)."""

    exit_code = 2


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)
    return isinstance(error, MemoryError)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, at most 200 characters; its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Returns a hint with the nearest known words; with all of them if none is near and they are at most 20."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(known)}" if 0 < len(known) <= 20 else None
