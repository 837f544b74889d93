"""The labels in the rows of a table: a column of classes or of lists, or a column of 0 and 1 for each label."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from vitrail.data.table_rows import LABEL_COLUMNS, NumberedRow, find_column
from vitrail.errors import VitrailError

BINARY_VALUES = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def find_label_columns(file: Path, rows: Sequence[NumberedRow], others: set[str | None]) -> list[str]:
    """Returns the label column, or at least two columns that have only 0 and 1; raises `VitrailError`."""
    _, first = rows[0]
    named = next((name for name in first if str(name).strip().lower() in LABEL_COLUMNS), None)
    if named is not None:
        return [named]
    candidates = [name for name in first if name not in others and is_binary(first[name])]
    binary = [name for name in candidates if all(is_binary(row.get(name)) for _, row in rows)]
    return binary if len(binary) > 1 else [find_column(file, first, LABEL_COLUMNS)]


def is_binary(value: object) -> bool:
    """Returns whether a value of a table is 0 or 1."""
    return str(value).strip().lower() in BINARY_VALUES


def read_label(row: dict[str, object], columns: Sequence[str], line: str) -> str | list[str]:
    """Returns the label of a row, or its labels if the column has lists or each label has a column of 0 and 1.

    Raises `VitrailError` if there is no value, or one that is not a label.
    """
    if len(columns) > 1:
        return [clean_label(name) for name in columns if BINARY_VALUES[str(row[name]).strip().lower()]]
    value = row.get(columns[0])
    if value is None:
        raise VitrailError(f"{line}: the column {columns[0]!r} is empty", "fill it in or remove the row")
    if not isinstance(value, list | tuple):
        return clean_label(value)
    if any(isinstance(each, dict | list) or each is None for each in value):
        raise VitrailError(f"{line}: the column {columns[0]!r} holds {value!r}", "give a list of class names")
    return [clean_label(each) for each in value]


def clean_label(value: object) -> str:
    return unicodedata.normalize("NFC", str(value).strip())


def to_list(label: str | list[str]) -> list[str]:
    """Returns the labels of an image as a list; an empty text is none."""
    return label if isinstance(label, list) else [label] if label else []
