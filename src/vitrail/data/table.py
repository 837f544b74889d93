"""A table of image paths and labels: CSV, or parquet with the `parquet` extra."""

import csv
import os
import unicodedata
from pathlib import Path

from vitrail.data.encoded import ImageFiles
from vitrail.data.source import Listing, Source, parse_split_name
from vitrail.errors import VitrailError
from vitrail.installation import install_hint

TABLE_EXTENSIONS = (".csv", ".tsv", ".parquet")
PATH_COLUMNS = ("path", "file", "filename", "image", "image_path", "file_name")
LABEL_COLUMNS = ("label", "class", "class_name", "category", "target")
SPLIT_COLUMNS = ("split", "set", "subset")

NumberedRow = tuple[str, dict[str, object]]  # "line 3", and the row's values by column


def read_table(file: Path) -> Source:
    """Lists the images of a table that has a path column, a label column and possibly a split column.

    Paths are relative to the table; files that do not exist are in `missing`. Raises `VitrailError` naming the line of
    an empty field.
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
    for number, row in rows:
        line = f"{file}, {number}"
        for name in (path_column, label_column, split_column):
            if name is not None and (row[name] is None or not str(row[name]).strip()):
                raise VitrailError(f"{line}: the column {name!r} is empty", "fill it in or remove the row")
        split = parse_split_name(str(row[split_column]), line) if split_column else "all"
        path = file.parent / str(row[path_column])
        if not os.path.isfile(path):  # not path.is_file(), which raises for names that are too long
            missing.append(f"{line}: there is no file {path}")
        paths.setdefault(split, []).append(path)
        names.setdefault(split, []).append(str(row[path_column]))
        labels.setdefault(split, []).append(unicodedata.normalize("NFC", str(row[label_column]).strip()))
    splits = {split: Listing(ImageFiles(paths[split]), names[split], labels[split]) for split in paths}
    return Source(file.stem, splits, missing=missing)


def find_column(file: Path, row: dict[str, object], names: tuple[str, ...]) -> str:
    """Returns the first column with one of these names, as the table spells it; raises `VitrailError`."""
    for name in row:
        if str(name).strip().lower() in names:
            return name
    raise VitrailError(f"{file} has no column {names[0]!r}", f"its columns are {', '.join(map(str, row))}")


def read_csv_rows(file: Path) -> list[NumberedRow]:
    """Reads a comma- or tab-separated file. Blank lines count for line numbers but are not rows."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
            return [(f"line {reader.line_num}", dict(row)) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise VitrailError(f"{file} is not a table in UTF-8 ({error})", "save it as CSV in UTF-8") from None


def read_parquet_rows(file: Path) -> list[NumberedRow]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise VitrailError("reading parquet needs pyarrow", install_hint("parquet")) from None
    try:
        rows: list[dict[str, object]] = parquet.read_table(file).to_pylist()
    except (OSError, ValueError) as error:
        raise VitrailError(f"{file} is not a parquet file ({error})") from None
    return [(f"row {i}", row) for i, row in enumerate(rows, start=1)]
