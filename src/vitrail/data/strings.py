"""Compact sequences of strings for millions of names and labels; a Python string costs 50 bytes beyond its letters."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np


class StringArray(Sequence[str]):
    """Strings in one buffer of UTF-8, as in Arrow; `rows` selects some of them, in any order."""

    def __init__(self, data: np.ndarray, offsets: np.ndarray, rows: np.ndarray | None = None):
        self.data = data  # uint8
        self.offsets = offsets  # int64 (n + 1,)
        self.rows = np.arange(len(offsets) - 1, dtype=np.int64) if rows is None else rows

    @classmethod
    def from_strings(cls, strings: Iterable[str]) -> "StringArray":
        """Stores the strings; bytes that are not UTF-8 (surrogate escapes of file names) are kept as they are."""
        data = bytearray()
        offsets = [0]
        for string in strings:
            data += string.encode(errors="surrogateescape")
            offsets.append(len(data))
        return cls(np.frombuffer(bytes(data), dtype=np.uint8), np.array(offsets, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int | slice) -> str | list[str]:  # type: ignore[override]
        if isinstance(i, slice):
            return [self._decode(row) for row in self.rows[i]]
        return self._decode(self.rows[i])

    def _decode(self, row: int) -> str:
        return self.data[self.offsets[row] : self.offsets[row + 1]].tobytes().decode(errors="replace")

    def take(self, indices: np.ndarray) -> "StringArray":
        """Returns the strings with these indices; the buffer is shared."""
        return StringArray(self.data, self.offsets, self.rows[indices])


class NumberedNames(Sequence[str]):
    """Names formatted on access from a prefix and a number, such as "train-0000042"."""

    def __init__(self, prefix: str, numbers: np.ndarray, digits: int):
        self.prefix = prefix
        self.numbers = numbers
        self.digits = digits

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int | slice) -> str | list[str]:  # type: ignore[override]
        if isinstance(i, slice):
            return [self._format(number) for number in self.numbers[i]]
        return self._format(self.numbers[i])

    def _format(self, number: int) -> str:
        return f"{self.prefix}{number:0{self.digits}d}"

    def take(self, indices: np.ndarray) -> "NumberedNames":
        """Returns the names with these indices."""
        return NumberedNames(self.prefix, self.numbers[indices], self.digits)


@runtime_checkable
class CompactStrings(Protocol):
    """Strings that are not stored one by one."""

    def take(self, indices: np.ndarray) -> Sequence[str]:
        """Returns the strings with these indices, in the same representation."""


def take_strings(strings: Sequence[str], indices: np.ndarray) -> Sequence[str]:
    """Returns the strings with these indices, in the same representation."""
    if isinstance(strings, CompactStrings):
        return strings.take(indices)
    return [strings[i] for i in indices.tolist()]
