"""What vitrail says when it cannot go on: one sentence, and a hint about what to do."""

import difflib
from collections.abc import Iterable

NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")  # torch's words: on a GPU, on a CPU


class VitrailError(Exception):
    """The work found a problem: bad data, a damaged file, a run that diverged (exit code 1)."""

    exit_code = 1

    def __init__(self, sentence: str, hint: str | None = None):
        super().__init__(sentence)
        self.sentence = sentence
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.sentence} ({self.hint})" if self.hint else self.sentence


class UsageError(VitrailError):
    """What was asked for does not exist or does not fit together (exit code 2)."""

    exit_code = 2


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory does not suffice; torch has no kind of its own for that on a CPU."""
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in NO_MEMORY)
    return isinstance(error, MemoryError)


def first_line(error: BaseException) -> str:
    """The beginning of what an error says, as far as it fits into a sentence; of one that says nothing, its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A hint naming the nearest known words, or where none is near all of them, if they are few."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(known)}" if 0 < len(known) <= 20 else None
