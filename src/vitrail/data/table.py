"""A table of paths and labels: CSV, or parquet with the `parquet` extra."""

import csv
import os
import unicodedata
from pathlib import Path

from vitrail.data.encoded import ImageFiles
from vitrail.data.source import Listing, Source, parse_split_name
from vitrail.errors import VitrailError

TABLE_EXTENSIONS = (".csv", ".tsv", ".parquet")
PATH_COLUMNS = ("path", "file", "filename", "image", "image_path", "file_name")
LABEL_COLUMNS = ("label", "class", "class_name", "category", "target")
SPLIT_COLUMNS = ("split", "set", "subset")


def read_table(file: Path) -> Source:
    """The rows of a table with a path and a label column, and a split column if there is one.

    Paths are relative to the table; those that lead nowhere are `missing`. Raises `VitrailError` naming the line where
    a field is empty.
    """
    rows = read_parquet_rows(file) if file.suffix.lower() == ".parquet" else read_csv_rows(file)
    if not rows:
        raise VitrailError(f"{file} has no rows", "give it a header line and a line per image")
    _, first = rows[0]
    path_column = find_column(file, first, PATH_COLUMNS)
    label_column = find_column(file, first, LABEL_COLUMNS)
    split_column = next((name for name in first if str(name).strip().lower() in SPLIT_COLUMNS), None)
    paths: dict[str, list[Path]] = {}
    names: dict[str, list[str]] = {}
    labels: dict[str, list[str]] = {}
    missing: list[str] = []
    for place, row in rows:
        where = f"{file}, {place}"
        for name in (path_column, label_column, split_column):
            if name is not None and (row[name] is None or not str(row[name]).strip()):
                raise VitrailError(f"{where}: the column {name!r} is empty", "fill it in or remove the row")
        split = parse_split_name(str(row[split_column]), where) if split_column else "all"
        path = file.parent / str(row[path_column])
        if not os.path.isfile(path):  # pathlib's own raises for names that are too long
            missing.append(f"{where}: there is no file {path}")
        paths.setdefault(split, []).append(path)
        names.setdefault(split, []).append(str(row[path_column]))
        labels.setdefault(split, []).append(unicodedata.normalize("NFC", str(row[label_column]).strip()))
    splits = {split: Listing(ImageFiles(paths[split]), names[split], labels[split]) for split in paths}
    return Source(file.stem, splits, missing=missing)


def find_column(file: Path, row: dict[str, object], wanted: tuple[str, ...]) -> str:
    """The table's own spelling of a column; raises `VitrailError` if it has none."""
    for name in row:
        if str(name).strip().lower() in wanted:
            return name
    raise VitrailError(f"{file} has no column {wanted[0]!r}", f"its columns are {', '.join(map(str, row))}")


def read_csv_rows(file: Path) -> list[tuple[str, dict[str, object]]]:
    """The rows of a comma- or tab-separated file, each with where it stands (blank lines count, but are no rows)."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
            return [(f"line {reader.line_num}", dict(row)) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise VitrailError(f"{file} is not a table in UTF-8 ({error})", "save it as CSV in UTF-8") from None


def read_parquet_rows(file: Path) -> list[tuple[str, dict[str, object]]]:
    """The rows of a parquet file, each with where it stands."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise VitrailError("reading parquet needs pyarrow", "pip install 'vitrail[parquet]'") from None
    try:
        rows: list[dict[str, object]] = parquet.read_table(file).to_pylist()
    except (OSError, ValueError) as error:
        raise VitrailError(f"{file} is not a parquet file ({error})") from None
    return [(f"row {i}", row) for i, row in enumerate(rows, start=1)]
