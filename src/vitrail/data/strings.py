"""Millions of names and labels in a few arrays: a Python string takes 50 bytes more than its letters."""

from collections.abc import Iterable, Sequence

import numpy as np


class StringArray(Sequence[str]):
    """Strings that differ, as one run of UTF-8 with the bounds of each; `rows` are those that are meant, in order."""

    def __init__(self, letters: np.ndarray, bounds: np.ndarray, rows: np.ndarray | None = None):
        self.data = letters  # uint8
        self.offsets = bounds  # int64 (n + 1,)
        self.rows = np.arange(len(bounds) - 1, dtype=np.int64) if rows is None else rows

    @classmethod
    def from_strings(cls, words: Iterable[str]) -> "StringArray":
        """These strings; what is no UTF-8 was decoded by the system and stays what it was."""
        letters = bytearray()
        bounds = [0]
        for word in words:
            letters += word.encode(errors="surrogateescape")
            bounds.append(len(letters))
        return cls(np.frombuffer(bytes(letters), dtype=np.uint8), np.array(bounds, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int | slice) -> str | list[str]:  # type: ignore[override]
        if isinstance(i, slice):
            return [self._word(row) for row in self.rows[i]]
        return self._word(self.rows[i])

    def _word(self, row: int) -> str:
        return self.data[self.offsets[row] : self.offsets[row + 1]].tobytes().decode(errors="replace")

    def take(self, places: np.ndarray) -> "StringArray":
        """The strings at these places; the letters are shared."""
        return StringArray(self.data, self.offsets, self.rows[places])


class NumberedNames(Sequence[str]):
    """Names that are made when asked for: a stem and a number."""

    def __init__(self, stem: str, rows: np.ndarray, digits: int):
        self.stem = stem
        self.rows = rows
        self.digits = digits

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int | slice) -> str | list[str]:  # type: ignore[override]
        if isinstance(i, slice):
            return [f"{self.stem}{row:0{self.digits}d}" for row in self.rows[i]]
        return f"{self.stem}{self.rows[i]:0{self.digits}d}"

    def take(self, places: np.ndarray) -> "NumberedNames":
        """The names at these places."""
        return NumberedNames(self.stem, self.rows[places], self.digits)


class Categorical(Sequence[str]):
    """Few different strings many times: numbers into a table."""

    def __init__(self, table: tuple[str, ...], codes: np.ndarray):
        self.categories = table
        self.codes = codes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, i: int | slice) -> str | list[str]:  # type: ignore[override]
        if isinstance(i, slice):
            return [self.categories[code] for code in self.codes[i]]
        return self.categories[self.codes[i]]

    def take(self, places: np.ndarray) -> "Categorical":
        """The strings at these places."""
        return Categorical(self.categories, self.codes[places])


def take_strings(words: Sequence[str], places: np.ndarray) -> Sequence[str]:
    """The strings at these places, kept as they were kept."""
    if isinstance(words, StringArray | NumberedNames | Categorical):
        return words.take(places)
    return [words[i] for i in places.tolist()]


def factorize(words: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different strings in order, and for each its number among them."""
    if isinstance(words, Categorical):
        there = np.unique(words.codes)
        table = sorted({words.categories[code] for code in there})
        number = {word: i for i, word in enumerate(table)}
        renumbered = np.zeros(len(words.categories), dtype=np.int64)
        for code in there:
            renumbered[code] = number[words.categories[code]]
        return table, renumbered[words.codes]
    table = sorted(set(words))
    number = {word: i for i, word in enumerate(table)}
    return table, np.fromiter((number[word] for word in words), dtype=np.int64, count=len(words))
