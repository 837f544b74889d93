"""The rows of a table: a CSV or TSV file, JSON lines, or a parquet file."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from vitrail.data.formats import is_image_name
from vitrail.errors import VitrailError
from vitrail.installation import install_hint

TABLE_EXTENSIONS = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")
PATH_COLUMNS = ("path", "file", "filename", "image", "image_path", "file_name")
LABEL_COLUMNS = ("label", "class", "class_name", "category", "target", "labels")
OTHER_PATH_COLUMNS = ("fname", "name")  # of fastai's tables; read where no column is called as above
PATH_WORD = f"(?:{'|'.join(sorted(PATH_COLUMNS, key=len, reverse=True))})"
STACK_COLUMN = re.compile(rf"{PATH_WORD}(?:\d+|[ _:.-].+)|.+[ _:.-]{PATH_WORD}")  # path_nir, image1, nir_path
VALIDATION_COLUMN = "is_valid"  # of fastai's tables: true or false
SPLIT_COLUMNS = ("split", "set", "subset", VALIDATION_COLUMN)
GROUP_COLUMNS = ("group", "group_id")
BATCH_ROWS = 1024  # of a parquet file that are in memory at a time
QUOTE_HINT = 'put a value that has a comma into quotes ("cat, tabby"), and close every quote'

NumberedRow = tuple[str, dict[str, object]]  # "line 3", and the row's values by column


def iter_rows(file: Path) -> Iterator[NumberedRow]:
    """Yields the rows of a table; raises `VitrailError`, naming the line of a row that does not match the header."""
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        return iter_json_rows(file)
    return iter_parquet_rows(file) if file.suffix.lower() == ".parquet" else iter_csv_rows(file)


def iter_json_rows(file: Path) -> Iterator[NumberedRow]:
    """Yields the objects of a file of JSON lines. Blank lines count for line numbers but are not rows.

    Each object has the keys of the first one; what it lacks is None.
    """
    keys: list[str] = []
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise VitrailError(f"{file}, line {number}: it is not a JSON object", "write one object per line")
                keys = keys or list(row)
                if unknown := sorted(set(row) - set(keys)):
                    sentence = f"{file}, line {number}: the first line has no {unknown[0]!r}"
                    raise VitrailError(sentence, "write the same keys in every line")
                yield f"line {number}", {key: row.get(key) for key in keys}
    except UnicodeDecodeError as error:
        raise VitrailError(f"{file} is not in UTF-8 ({error})") from None
    except (ValueError, RecursionError) as error:
        raise VitrailError(f"{file}, line {number}: it is not JSON ({error})", "write one object per line") from None


def iter_csv_rows(file: Path) -> Iterator[NumberedRow]:
    """Yields the rows of a comma- or tab-separated file. Blank lines count for line numbers but are not rows."""
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    line = 0
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            header: list[str] = []
            for values in reader:
                first_line, line = line + 1, reader.line_num
                if not header:
                    header = values
                    check_header(file, header)
                elif values:
                    check_values(f"{file}, line {first_line}", header, values, delimiter)
                    padding = [None] * (len(header) - len(values))
                    yield f"line {first_line}", dict(zip(header, [*values, *padding], strict=False))
    except UnicodeDecodeError as error:
        raise VitrailError(f"{file} is not a table in UTF-8 ({error})", "save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise VitrailError(f"{file}, line {line + 1}: the row cannot be read ({error})", QUOTE_HINT) from None


def check_header(file: Path, header: list[str]) -> None:
    """Raises `VitrailError` if two columns have the same name."""
    repeated = [name for name, n in Counter(name.strip().lower() for name in header).items() if n > 1 and name]
    if repeated:
        raise VitrailError(f"{file} has two columns named {repeated[0]!r}", "rename one of them")


def check_values(location: str, header: list[str], values: list[str], delimiter: str) -> None:
    """Raises `VitrailError` if a row has more values than the header has columns, or if a value swallowed other rows.

    A value that goes over several lines is only allowed in a column that is not used, and if its lines are not rows.
    """
    if any(value.strip() for value in values[len(header) :]):
        raise VitrailError(f"{location}: {len(values)} values for {len(header)} columns", QUOTE_HINT)
    for name, value in zip(header, values, strict=False):
        _, *continued = value.splitlines() or [""]
        lower = name.strip().lower()
        is_used = lower in (*PATH_COLUMNS, *LABEL_COLUMNS, *SPLIT_COLUMNS, *GROUP_COLUMNS)
        is_used = is_used or (bool(STACK_COLUMN.fullmatch(lower)) and is_image_path(value))
        if continued and (is_used or any(line.count(delimiter) >= len(header) - 1 for line in continued)):
            raise VitrailError(f"{location}: the value of {name!r} goes over {len(continued) + 1} lines", QUOTE_HINT)


def iter_parquet_rows(file: Path) -> Iterator[NumberedRow]:
    """Yields the rows of a parquet file; raises `VitrailError` if pyarrow is not installed."""
    parquet = import_parquet()
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (OSError, ValueError) as error:
        raise VitrailError(f"{file} is not a parquet file ({error})") from None


def import_parquet() -> Any:
    """Returns the module `pyarrow.parquet`; raises `VitrailError` if it is not installed."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise VitrailError("reading parquet needs pyarrow", install_hint("parquet")) from None
    return parquet


def has_image_bytes(file: Path) -> str | None:
    """Returns the column of a parquet file that holds encoded images, as Hugging Face writes them; None if none does.

    Such a column is a struct with the field `bytes`, or binary.
    """
    parquet = import_parquet()
    import pyarrow

    try:
        schema = parquet.read_schema(file)
    except (OSError, ValueError) as error:
        raise VitrailError(f"{file} is not a parquet file ({error})") from None
    for field in schema:
        names = [each.name for each in field.type] if pyarrow.types.is_struct(field.type) else []
        is_binary = pyarrow.types.is_binary(field.type) or pyarrow.types.is_large_binary(field.type)
        if "bytes" in names or (is_binary and field.name.strip().lower() in PATH_COLUMNS):
            return str(field.name)
    return None


def find_path_columns(file: Path, row: dict[str, object]) -> list[str]:
    """Returns the column of paths, or the columns of the files of one image, such as path_red and path_nir.

    The latter are at least two columns that are named after a column of paths and hold names of images. Raises
    `VitrailError` if there are neither.
    """
    if any(str(name).strip().lower() in PATH_COLUMNS for name in row):
        return [find_column(file, row, PATH_COLUMNS)]
    images = [name for name, value in row.items() if is_image_path(value)]
    stacked = [name for name in images if STACK_COLUMN.fullmatch(str(name).strip().lower())]
    if len(stacked) > 1:
        return stacked
    if len(images) > 1 and not any(str(name).strip().lower() in OTHER_PATH_COLUMNS for name in row):
        renamed = ", ".join(f"path_{name}" for name in images)
        raise VitrailError(
            f"{file} has several columns of image files ({', '.join(images)}), and none is called path",
            f"name them {renamed} if they are the channels of one image, else name the column to read path",
        )
    return [find_column(file, row, PATH_COLUMNS)]


def is_image_path(value: object) -> bool:
    """Returns whether a value of a table ends like the name of an image that is read."""
    return isinstance(value, str) and is_image_name(PurePath(value.strip()).name)


def check_paths(row: dict[str, object], columns: Sequence[str], location: str) -> None:
    """Raises `VitrailError` if one of the columns of a row does not hold a path, or if another one has to be one."""
    for name in row if len(columns) > 1 else ():
        if name not in columns and is_image_path(row[name]) and STACK_COLUMN.fullmatch(str(name).strip().lower()):
            raise VitrailError(
                f"{location}: the column {name!r} has an image, and the first row has none", "fill it in or remove it"
            )
    for name in columns:
        value = row[name]
        if value is None or not str(value).strip():
            raise VitrailError(f"{location}: the column {name!r} is empty", "fill it in or remove the row")
        if not isinstance(value, str):
            kind = type(value).__name__
            raise VitrailError(f"{location}: the column {name!r} holds {kind}, not paths", "name the column of paths")


def find_column(file: Path, row: dict[str, object], names: tuple[str, ...]) -> str:
    """Returns the first column with one of these names, as the table spells it; raises `VitrailError`."""
    for candidates in (names, OTHER_PATH_COLUMNS if names is PATH_COLUMNS else ()):
        for name in row:
            if str(name).strip().lower() in candidates:
                return name
    raise VitrailError(f"{file} has no column {names[0]!r}", f"its columns are {', '.join(map(str, row))}")
