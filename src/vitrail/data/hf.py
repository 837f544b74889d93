"""hf:NAME: an image classification data set of Hugging Face datasets, from the hub, a folder or a parquet file.

The library stores a data set as memory-mapped Arrow files, so any row can be read and none is held in memory. Images
are taken as encoded bytes and decoded by vitrail, as from any other source.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrail import console
from vitrail.data.addresses import HF_PREFIX
from vitrail.data.bands import Channels
from vitrail.data.decode import TRANSIENT_ERRNOS, ImageError, ImageUnreachable
from vitrail.data.encoded import EncodedImages
from vitrail.data.formats import EXTENSIONS, UNREAD_EXTENSIONS
from vitrail.data.labels import Categorical, LabelSets, Numbers, categorize, factorize
from vitrail.data.source import SPLIT_NAMES, LeftOut, Listing, Source
from vitrail.data.strings import NumberedNames, StringArray
from vitrail.data.table_rows import GROUP_COLUMNS, LABEL_COLUMNS
from vitrail.data.walk import Omissions, count, walk_files
from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.installation import install_hint

HF_LABEL_COLUMNS = (*LABEL_COLUMNS, "fine_label")  # in order of preference
NAME_DIGITS = 7  # digits of the row number in an image's name
FILE_BUILDERS = {".arrow": "arrow", ".parquet": "parquet"}


@dataclass(frozen=True)
class DatasetRows(EncodedImages):
    """Images in the `rows` of a `datasets.Dataset`, in this order."""

    table: Any
    column: str
    dataset_name: str
    names: StringArray | NumberedNames
    rows: np.ndarray
    channels: Channels = 3

    def __len__(self) -> int:
        return len(self.rows)

    def location(self, i: int) -> str:
        """Returns DATASET:NAME."""
        return f"{self.dataset_name}:{self.names[i]}"

    def read_bytes(self, i: int) -> bytes:
        """Returns the bytes in the row, or in the file that it names."""
        try:
            image = self.table[int(self.rows[i])][self.column]
            if image is None:
                raise ImageError(self.location(i), "the row has no image")
            content: bytes = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        except FileNotFoundError as error:
            raise ImageError(self.location(i), f"there is no file {error.filename}") from None
        except OSError as error:
            error_type = ImageUnreachable if error.errno in TRANSIENT_ERRNOS else ImageError
            raise error_type(self.location(i), error.strerror or str(error)) from None
        return content

    def byte_sizes(self) -> np.ndarray:
        """Returns the sizes from the table's offsets, without reading images, chunk by chunk."""
        import pyarrow.compute as pc

        chunks = [np.empty(0, dtype=np.int64)]
        for chunk in self.table.data.column(self.column).chunks:
            sizes = pc.fill_null(pc.binary_length(chunk.field("bytes")).cast("int64"), -1).to_numpy().copy()
            for i in np.flatnonzero(sizes < 0).tolist():
                path = chunk.field("path")[i].as_py()
                if path and os.path.isfile(path):
                    sizes[i] = os.path.getsize(path)
            chunks.append(sizes)
        return np.concatenate(chunks)[self.rows]

    def cache_key(self, i: int) -> tuple[str, int, int]:
        """Returns the location, the row and the library's fingerprint of the table."""
        fingerprint = int(str(self.table._fingerprint)[:14], 16)
        return f"{HF_PREFIX}{self.location(i)}", int(self.rows[i]), fingerprint

    def take(self, indices: np.ndarray) -> "DatasetRows":
        """Returns the images with these indices; the table is shared."""
        return replace(self, names=self.names.take(indices), rows=self.rows[indices])


def read_hf_dataset(address: str) -> Source:
    """Lists the images at hf:NAME, hf:NAME:CONFIG or hf:PATH (a folder or parquet file in a layout of the library).

    Raises `UsageError` if the library is not installed or the data set has no labeled images, `VitrailError` if it
    cannot be loaded.
    """
    name = address.removeprefix(HF_PREFIX)
    notes: list[str] = []
    left_out: list[LeftOut] = []
    splits: dict[str, Listing] = {}
    tables = load_tables(name)
    for table_name, table in tables.items():
        split = SPLIT_NAMES.get(str(table_name).lower())
        if split is None or split in splits:
            left_out.append(LeftOut(f"{address}: the split {table_name}", len(table)))
            continue
        splits[split] = list_split(name, split, table, notes, left_out)
    splits = {split: listing for split, listing in splits.items() if len(listing)}
    if set(splits) == {"train"}:  # the library's name for a data set that is not split
        splits = {"all": splits["train"]}
    if not splits:
        raise VitrailError(f"{address} has no labeled images in train, validation or test")
    left_out += describe_unlisted_files(name, tables)
    short_name = Path(name).stem if Path(name).exists() else name.replace(":", "-")
    return Source(short_name, splits, notes=notes, left_out=left_out)


def load_tables(name: str) -> dict[str, Any]:
    """Returns the tables of a data set by the names of their splits."""
    try:
        import datasets
    except ImportError:
        raise UsageError("hf:NAME needs Hugging Face datasets", install_hint("hf")) from None
    hint = None
    if not Path(name).exists() and ":" not in name:
        hint = f"if it has several configurations, use {HF_PREFIX}{name}:CONFIG"
    try:
        with silence_libraries():
            tables = load_from_path(name) if Path(name).exists() else load_from_hub(name)
    except VitrailError:
        raise
    except ConnectionError as error:
        raise VitrailError(
            f"{HF_PREFIX}{name} is not in the cache and the hub cannot be reached ({first_line(error)})",
            "a data set that was downloaded before works offline; hf:PATH reads a folder or a parquet file",
        ) from None
    except datasets.exceptions.DatasetNotFoundError as error:
        raise VitrailError(f"{HF_PREFIX}{name} cannot be loaded by datasets: {first_line(error)}") from None
    except Exception as error:  # the library raises many types of errors
        cause = error.__cause__ or error
        raise VitrailError(f"{HF_PREFIX}{name} cannot be loaded by datasets: {first_line(cause)}", hint) from None
    return dict(tables) if isinstance(tables, dict) else {"train": tables}


def load_from_path(name: str) -> Any:
    import datasets

    path = Path(name)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return datasets.load_from_disk(name)
    if path.is_dir():
        return datasets.load_dataset(name)
    builder = FILE_BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise UsageError(f"{name} is not a parquet or arrow file", "hf:PATH takes those, and folders")
    return datasets.load_dataset(builder, data_files=name)


def load_from_hub(name: str) -> Any:
    import datasets

    if name.startswith(("/", ".")):
        raise UsageError(f"there is no folder {name}")
    repository, _, config = name.partition(":")
    console.log(f"looking for {repository} on the hub")
    return datasets.load_dataset(repository, config or None)


def list_split(name: str, split: str, table: Any, notes: list[str], left_out: list[LeftOut]) -> Listing:
    """Lists the labeled images of a split and appends to `notes` and `left_out`."""
    import datasets

    features = dict(table.features)
    image_columns = [column for column, feature in features.items() if holds_images(feature)]
    if not image_columns:
        raise UsageError(f"{HF_PREFIX}{name} has no column of images", f"its columns are {', '.join(features)}")
    image_column, label_column = image_columns[0], choose_label_column(name, features, notes)
    stored, rows = find_rows(table)
    labels = encode_labels(stored.data.column(label_column).take(rows), label_column, features[label_column])
    labeled = np.flatnonzero(labels.codes >= 0)
    if len(labeled) < len(labels):
        n = len(labels) - len(labeled)
        left_out.append(LeftOut(f"{HF_PREFIX}{name}: {n} images of {split} without a label", n))
    group_column = next((column for column in features if column.lower() in GROUP_COLUMNS), None)
    others = [column for column in features if column not in (image_column, label_column, group_column)]
    unused = LeftOut(f"{HF_PREFIX}{name}: the column{'s' * (len(others) > 1)} {', '.join(others)}")
    if others and unused not in left_out:
        left_out.append(unused)
    undecoded = stored.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    names = name_rows(name, split, undecoded, image_column).take(rows[labeled])
    images = DatasetRows(undecoded, image_column, name, names, rows[labeled])
    groups = None if group_column is None else read_groups(name, stored, group_column, rows[labeled])
    return Listing(images, names, labels.take(labeled), groups)


def find_rows(table: Any) -> tuple[Any, np.ndarray]:
    """Returns the data set with all its rows as they are stored, and which of them the given one has, in its order.

    They differ after `select`, `filter`, `shuffle` and `train_test_split`, which move no data.
    """
    import datasets

    if table._indices is None:
        return table, np.arange(len(table))
    stored = datasets.Dataset(table.data, info=table.info, split=table.split, fingerprint=table._fingerprint)
    return stored, table._indices.column(0).to_numpy().astype(np.int64)


def read_groups(name: str, table: Any, column: str, rows: np.ndarray) -> Categorical:
    """Returns the groups in these rows; raises `VitrailError` for a row without one."""
    groups = table.data.column(column).take(rows).to_pylist()
    if any(group is None or not str(group).strip() for group in groups):
        raise VitrailError(f"{HF_PREFIX}{name}: the column {column!r} is empty in a row", "fill it in")
    return categorize(groups)


def holds_images(feature: Any) -> bool:
    """Returns whether a column has images, also in a parquet file without the library's own schema."""
    import datasets

    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def choose_label_column(name: str, features: dict[str, Any], notes: list[str]) -> str:
    """Returns the column with the class: one of type ClassLabel, else one with a usual name."""
    import datasets

    class_labels = [
        column
        for column, feature in features.items()
        if isinstance(feature, datasets.ClassLabel) or isinstance(item_feature(feature), datasets.ClassLabel)
    ]
    candidates = class_labels or [column for column in features if column.lower() in HF_LABEL_COLUMNS]
    if not candidates:
        raise UsageError(f"{HF_PREFIX}{name} has no column of classes", f"its columns are {', '.join(features)}")
    chosen = next((column for column in HF_LABEL_COLUMNS if column in candidates), candidates[0])
    others = ", ".join(column for column in candidates if column != chosen)
    note = f"{HF_PREFIX}{name}: the class is taken from column {chosen}, not {others}"
    if others and note not in notes:
        notes.append(note)
    return chosen


def item_feature(feature: Any) -> Any:
    """Returns the feature of the items of a column of sequences; None for another column."""
    if isinstance(feature, list):
        return feature[0]
    return getattr(feature, "feature", None)


def encode_labels(values: Any, column: str, feature: Any) -> Categorical:
    """Returns the label of each row, its labels if the column has sequences, or its number if it has fractions.

    `values` are those of the column, as Arrow has them. The code of an empty row is -1. Raises `VitrailError` for a
    number that is not finite.
    """
    if str(getattr(feature, "dtype", "")).startswith("float") and has_fractions(values.to_pylist()):
        return encode_numbers(values.to_pylist(), column)
    item = item_feature(feature)
    if item is None:
        return Categorical(*encode_classes(values, feature))
    names = getattr(item, "names", None)
    rows = values.to_pylist()
    sets = LabelSets.from_labels(
        [str(names[each] if names else each) for each in row if each is not None] if row else () for row in rows
    )
    return LabelSets(sets.sets, np.where([row is None for row in rows], -1, sets.codes))


def has_fractions(values: list[float | None]) -> bool:
    """Returns whether any of the numbers is not whole: classes are often written as 0.0 and 1.0."""
    return any(value is not None and not float(value).is_integer() for value in values)


def encode_numbers(values: list[float | None], column: str) -> Numbers:
    """Returns the number of each row, with the code -1 for an empty row."""
    bad = next((i for i, value in enumerate(values) if value is not None and not np.isfinite(value)), None)
    if bad is not None:
        raise VitrailError(f"row {bad}: the column {column!r} is {values[bad]}, which is not a finite number")
    is_empty = np.array([value is None for value in values])
    array = np.array([0.0 if value is None else value for value in values]).reshape(-1, 1)
    numbers = Numbers.from_array([column], array)
    return Numbers(numbers.names, numbers.rows, np.where(is_empty, -1, numbers.codes))


def encode_classes(values: Any, feature: Any) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the class names and the class index of each row, int64 (n,); -1 for a row without a label."""
    import datasets
    import pyarrow.compute as pc

    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names), pc.fill_null(values, -1).to_numpy().astype(np.int64)
    encoded = pc.dictionary_encode(values.cast("string")).combine_chunks()
    encoded = encoded.chunk(0) if hasattr(encoded, "chunk") else encoded
    dictionary = encoded.dictionary.to_pylist()
    classes, sorted_codes = factorize(dictionary)
    codes = pc.fill_null(encoded.indices.cast("int64"), -1).to_numpy()
    new_codes = sorted_codes if dictionary else np.zeros(1, dtype=np.int64)
    return tuple(classes), np.where(codes < 0, -1, new_codes[codes])


def name_rows(name: str, split: str, table: Any, column: str) -> StringArray | NumberedNames:
    """Returns the paths in the rows if they all have one of their own, else names from the split and the row number."""
    import pyarrow.compute as pc

    chunks = [chunk.field("path") for chunk in table.data.column(column).chunks]
    n = sum(map(len, chunks))
    numbered = NumberedNames(f"{split}-", np.arange(n), NAME_DIGITS)
    if any(chunk.null_count for chunk in chunks) or not n:
        return numbered
    if pc.count_distinct(pc.struct_field(table.data.column(column), "path")).as_py() < n:
        return numbered
    root = os.path.abspath(name) + os.sep
    return StringArray.from_strings(path.removeprefix(root) for chunk in chunks for path in chunk.to_pylist())


def describe_unlisted_files(name: str, tables: dict[str, Any]) -> list[LeftOut]:
    """Returns a sentence on the image files below a folder that are in none of its tables.

    The library leaves out, without a word, formats that it does not know, folders that begin with two underscores, and
    files beside the folders of splits.
    """
    if not os.path.isdir(name):
        return []
    files = [path for path in walk_files(name, Omissions()) if path.suffix.lower() in EXTENSIONS | UNREAD_EXTENSIONS]
    listed = {path for table in tables.values() for path in paths_in_rows(table)} if files else set()
    unlisted = sorted(path for path in files if os.path.abspath(path) not in listed)
    if not unlisted:
        return []
    sentence = f"{HF_PREFIX}{name}: {count(len(unlisted), 'image')} that datasets does not list, first {unlisted[0]}"
    return [LeftOut(sentence, len(unlisted))]


def paths_in_rows(table: Any) -> set[str]:
    """Returns the absolute paths of the image files that the rows of a table name."""
    import pyarrow.compute as pc

    images = [column for column, feature in table.features.items() if holds_images(feature)]
    columns = [table.data.column(column) for column in images]
    return {path for column in columns for path in pc.struct_field(column, "path").to_pylist() if path}


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Turns the libraries' warnings off, and their progress bars unless stderr is a terminal."""
    import datasets

    if hide_bars := console.quiet or not console.stderr.is_terminal:
        datasets.disable_progress_bars()
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if hide_bars:
            datasets.enable_progress_bars()
