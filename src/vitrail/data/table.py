"""A table of image paths and labels: CSV, JSON lines, or parquet with the `parquet` extra."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitrail.data.encoded import EncodedImages, ImageFiles
from vitrail.data.labels import LabelSets, Numbers, categorize
from vitrail.data.source import LeftOut, Listing, Source, parse_split_name
from vitrail.data.stacks import ImageStacks
from vitrail.data.table_labels import find_label_columns, find_number_columns, read_label, read_numbers, to_list
from vitrail.data.table_rows import (
    GROUP_COLUMNS,
    SPLIT_COLUMNS,
    VALIDATION_COLUMN,
    check_paths,
    find_path_columns,
    is_image_path,
    iter_rows,
)
from vitrail.errors import VitrailError

IS_VALIDATION = {"true": "validation", "1": "validation", "false": "train", "0": "train"}


def read_table(file: Path) -> Source:
    """Lists the images of a table that has a path column, a label column and possibly a split and a group column.

    Several columns such as path_red and path_nir are the files of one image. Without a label column, columns of 0 and 1
    are one label each, and other columns of numbers are numbers. Paths are relative to the table; files that do not
    exist are in `missing`, rows with an empty label in `empty_labels`. Raises `VitrailError` naming the line of another
    empty field.
    """
    rows = list(iter_rows(file))
    if not rows:
        raise VitrailError(f"{file} has no rows", "give it a header line and a line per image")
    _, first = rows[0]
    path_columns = find_path_columns(file, first)
    split_column, group_column = (
        next((name for name in first if str(name).strip().lower() in names), None)
        for names in (SPLIT_COLUMNS, GROUP_COLUMNS)
    )
    others = {*path_columns, split_column, group_column}
    label_columns = find_label_columns(file, rows, others)
    number_columns, are_floats = ([], False) if label_columns else find_number_columns(file, rows, others)
    paths: dict[str, list[tuple[Path, ...]]] = {}
    names: dict[str, list[str]] = {}
    labels: dict[str, list[str | list[str]]] = {}
    numbers: dict[str, list[list[float]]] = {}
    groups: dict[str, list[str]] = {}
    missing: list[str] = []
    empty_labels: list[str] = []
    for number, row in rows:
        line = f"{file}, {number}"
        check_paths(row, path_columns, line)
        for name in (split_column, group_column):
            if name is not None and (row[name] is None or not str(row[name]).strip()):
                raise VitrailError(f"{line}: the column {name!r} is empty", "fill it in or remove the row")
        split = parse_split(split_column, str(row[split_column]), line) if split_column else "all"
        files = tuple(file.parent / str(row[column]) for column in path_columns)
        # not path.is_file(), which raises for names that are too long
        missing += [f"{line}: there is no file {path}" for path in files if not os.path.isfile(path)]
        paths.setdefault(split, []).append(files)
        names.setdefault(split, []).append(str(row[path_columns[0]]))
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
            list_files(paths[split]),
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
    unused = [name for name in first if name not in used and str(name).strip()]
    left_out = [LeftOut(describe_unused(file, first, unused))] if unused else []
    stacked = f"the channels of an image are those of {', '.join(path_columns)}, in this order"
    return Source(
        file.stem,
        splits,
        notes=[stacked] if len(path_columns) > 1 else [],
        left_out=left_out,
        missing=missing,
        is_table=True,
        empty_labels=[] if has_lists else empty_labels,
    )


def list_files(paths: list[tuple[Path, ...]]) -> EncodedImages:
    """Returns the images in these files, of which an image has one or several."""
    return ImageStacks(paths) if len(paths[0]) > 1 else ImageFiles([path for (path,) in paths])


def describe_unused(file: Path, row: dict[str, object], columns: Sequence[str]) -> str:
    """Returns a phrase on the columns that are not used; one on columns of images says how to stack them."""
    phrase = f"{file}: the column{'s' * (len(columns) > 1)} {', '.join(map(str, columns))}"
    if not any(is_image_path(row[name]) for name in columns):
        return phrase
    return f"{phrase} (files of one image are in columns such as path_red, path_nir, without one called path)"


def parse_split(column: str, value: str, line: str) -> str:
    """Returns the split of a row; raises `VitrailError` for a value that names none."""
    if column.strip().lower() != VALIDATION_COLUMN:
        return parse_split_name(value, line)
    try:
        return IS_VALIDATION[value.strip().lower()]
    except KeyError:
        raise VitrailError(f"{line}: {column} is {value!r}", "use true or false") from None
