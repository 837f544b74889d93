"""The labels in the rows of a table: a column of classes or of lists, or columns of 0 and 1, or of numbers."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from vitrail.data.labels import parse_number
from vitrail.data.table_rows import LABEL_COLUMNS, NumberedRow, find_column
from vitrail.errors import VitrailError

BINARY_VALUES = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def find_label_columns(file: Path, rows: Sequence[NumberedRow], others: set[str | None]) -> list[str]:
    """Returns the label column, or at least two columns that have only 0 and 1; none if there is neither."""
    _, first = rows[0]
    named = next((name for name in first if str(name).strip().lower() in LABEL_COLUMNS), None)
    if named is not None:
        return [named]
    candidates = [name for name in first if name not in others and is_binary(first[name])]
    binary = [name for name in candidates if all(is_binary(row.get(name)) for _, row in rows)]
    return binary if len(binary) > 1 else []


def find_number_columns(file: Path, rows: Sequence[NumberedRow], others: set[str | None]) -> tuple[list[str], bool]:
    """Returns the columns of numbers of a table without a label column, and whether they are unmistakable.

    A column is one of numbers if at least half of its values are. Those with a decimal point are taken and are
    unmistakable; without any, whole numbers. Raises `VitrailError` if there are none.
    """
    _, first = rows[0]
    candidates = [name for name in first if name not in others and str(name).strip()]
    numbers = [name for name in candidates if 2 * sum(is_number(row.get(name)) for _, row in rows) >= len(rows)]
    floats = [name for name in numbers if any(has_point(row.get(name)) for _, row in rows)]
    if not numbers:
        find_column(file, first, LABEL_COLUMNS)  # raises the error that names what is missing
    return floats or numbers, bool(floats)


def is_number(value: object) -> bool:
    """Returns whether a value of a table is a finite number."""
    return value is not None and parse_number(value) is not None


def has_point(value: object) -> bool:
    """Returns whether a value of a table is a number with a decimal point or an exponent."""
    return is_number(value) and (isinstance(value, float) or bool(set(".eE") & set(str(value))))


def read_numbers(row: dict[str, object], columns: Sequence[str], line: str) -> list[float]:
    """Returns the numbers of a row; raises `VitrailError` for an empty value, and for one that is no finite number."""
    numbers = []
    for name in columns:
        value = row.get(name)
        if value is None or not str(value).strip():
            raise VitrailError(f"{line}: the column {name!r} is empty", "fill it in or remove the row")
        number = parse_number(value)
        if number is None:
            raise VitrailError(
                f"{line}: the column {name!r} is {str(value)[:40]!r}, which is not a finite number",
                "correct it or remove the row",
            )
        numbers.append(number)
    return numbers


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
