"""A table of image paths and labels: CSV, JSON lines, or parquet with the `parquet` extra."""

import os
from pathlib import Path

import numpy as np

from vitrail.data.encoded import ImageFiles
from vitrail.data.labels import LabelSets, Numbers, categorize
from vitrail.data.source import LeftOut, Listing, Source, parse_split_name
from vitrail.data.table_labels import find_label_columns, find_number_columns, read_label, read_numbers, to_list
from vitrail.data.table_rows import (
    GROUP_COLUMNS,
    PATH_COLUMNS,
    SPLIT_COLUMNS,
    VALIDATION_COLUMN,
    find_column,
    iter_rows,
)
from vitrail.errors import VitrailError

IS_VALIDATION = {"true": "validation", "1": "validation", "false": "train", "0": "train"}


def read_table(file: Path) -> Source:
    """Lists the images of a table that has a path column, a label column and possibly a split and a group column.

    Without a label column, columns of 0 and 1 are one label each, and other columns of numbers are numbers. Paths are
    relative to the table; files that do not exist are in `missing`, rows with an empty label in `empty_labels`. Raises
    `VitrailError` naming the line of another empty field.
    """
    rows = list(iter_rows(file))
    if not rows:
        raise VitrailError(f"{file} has no rows", "give it a header line and a line per image")
    _, first = rows[0]
    path_column = find_column(file, first, PATH_COLUMNS)
    split_column, group_column = (
        next((name for name in first if str(name).strip().lower() in names), None)
        for names in (SPLIT_COLUMNS, GROUP_COLUMNS)
    )
    others = {path_column, split_column, group_column}
    label_columns = find_label_columns(file, rows, others)
    number_columns, are_floats = ([], False) if label_columns else find_number_columns(file, rows, others)
    paths: dict[str, list[Path]] = {}
    names: dict[str, list[str]] = {}
    labels: dict[str, list[str | list[str]]] = {}
    numbers: dict[str, list[list[float]]] = {}
    groups: dict[str, list[str]] = {}
    missing: list[str] = []
    empty_labels: list[str] = []
    for number, row in rows:
        line = f"{file}, {number}"
        for name in (path_column, split_column, group_column):
            if name is not None and (row[name] is None or not str(row[name]).strip()):
                raise VitrailError(f"{line}: the column {name!r} is empty", "fill it in or remove the row")
        if not isinstance(row[path_column], str):
            kind = type(row[path_column]).__name__
            raise VitrailError(
                f"{line}: the column {path_column!r} holds {kind}, not paths", "name the column of paths"
            )
        split = parse_split(split_column, str(row[split_column]), line) if split_column else "all"
        path = file.parent / str(row[path_column])
        if not os.path.isfile(path):  # not path.is_file(), which raises for names that are too long
            missing.append(f"{line}: there is no file {path}")
        paths.setdefault(split, []).append(path)
        names.setdefault(split, []).append(str(row[path_column]))
        if number_columns:
            numbers.setdefault(split, []).append(read_numbers(row, number_columns, line))
        else:
            label = read_label(row, label_columns, line)
            if not label:
                empty_labels.append(f"{line}: the column {label_columns[0]!r} is empty")
            labels.setdefault(split, []).append(label)
        if group_column is not None:
            groups.setdefault(split, []).append(str(row[group_column]).strip())
    has_lists = any(isinstance(label, list) for each in labels.values() for label in each)
    splits = {
        split: Listing(
            ImageFiles(paths[split]),
            names[split],
            Numbers.from_array(number_columns, np.array(numbers[split]), is_certain=are_floats)
            if number_columns
            else LabelSets.from_labels(map(to_list, labels[split]))
            if has_lists
            else categorize(labels[split]),
            None if group_column is None else categorize(groups[split]),
        )
        for split in paths
    }
    used = {*others, *label_columns, *number_columns}
    unused = [str(name) for name in first if name not in used and str(name).strip()]
    left_out = [LeftOut(f"{file}: the column{'s' * (len(unused) > 1)} {', '.join(unused)}")] if unused else []
    return Source(
        file.stem,
        splits,
        left_out=left_out,
        missing=missing,
        is_table=True,
        empty_labels=[] if has_lists else empty_labels,
    )


def parse_split(column: str, value: str, line: str) -> str:
    """Returns the split of a row; raises `VitrailError` for a value that names none."""
    if column.strip().lower() != VALIDATION_COLUMN:
        return parse_split_name(value, line)
    try:
        return IS_VALIDATION[value.strip().lower()]
    except KeyError:
        raise VitrailError(f"{line}: {column} is {value!r}", "use true or false") from None
