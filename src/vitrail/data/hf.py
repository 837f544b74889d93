"""hf:NAME, an image classification set of Hugging Face datasets: from the hub, a folder or a parquet file.

The library lays a set out as Arrow files on the disk and maps them into memory, so that any row is at hand and none is
held. Images are taken as the bytes that they are there; this library's own decoder reads them, as everywhere.
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
from vitrail.data.decode import ImageError
from vitrail.data.encoded import EncodedImages
from vitrail.data.source import SPLIT_NAMES, Listing, Source
from vitrail.data.strings import Categorical, NumberedNames, StringArray, factorize
from vitrail.data.table import LABEL_COLUMNS
from vitrail.errors import UsageError, VitrailError, first_line

HF_PREFIX = "hf:"
LABELS = (*LABEL_COLUMNS, "labels", "fine_label")  # columns that are taken first where there are several
DIGITS = 7  # of a row's number in its name


@dataclass(frozen=True)
class DatasetRows(EncodedImages):
    """Images in rows of a `datasets.Dataset`, `rows` of them in order."""

    table: Any
    column: str
    where: str
    names: StringArray | NumberedNames
    rows: np.ndarray
    channels: int = 3

    def __len__(self) -> int:
        return len(self.rows)

    def location(self, i: int) -> str:
        """SET:NAME."""
        return f"{self.where}:{self.names[i]}"

    def read_bytes(self, i: int) -> bytes:
        """The bytes in the row, or in the file that it names."""
        try:
            image = self.table[int(self.rows[i])][self.column]
            if image is None:
                raise ImageError(self.location(i), "the row has no image")
            found: bytes = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        except FileNotFoundError as error:
            raise ImageError(self.location(i), f"there is no file {error.filename}") from None
        except OSError as error:
            raise ImageError(self.location(i), error.strerror or str(error)) from None
        return found

    def byte_sizes(self) -> np.ndarray:
        """As the table says, which has the lengths beside the bytes; a batch at a time."""
        import pyarrow.compute as pc

        parts = [np.empty(0, dtype=np.int64)]
        for chunk in self.table.data.column(self.column).chunks:
            there = pc.fill_null(pc.binary_length(chunk.field("bytes")).cast("int64"), -1).to_numpy().copy()
            for i in np.flatnonzero(there < 0).tolist():
                path = chunk.field("path")[i].as_py()
                if path and os.path.isfile(path):
                    there[i] = os.path.getsize(path)
            parts.append(there)
        return np.concatenate(parts)[self.rows]

    def cache_key(self, i: int) -> tuple[str, int, int]:
        """By the library's own fingerprint of the table."""
        known = int(str(self.table._fingerprint)[:14], 16)
        return f"{HF_PREFIX}{self.location(i)}", int(self.rows[i]), known

    def take(self, places: np.ndarray) -> "DatasetRows":
        """The images at these places; the table is shared."""
        return replace(self, names=self.names.take(places), rows=self.rows[places])


def read_hf_dataset(address: str) -> Source:
    """The images at hf:NAME, hf:NAME:CONFIG, or hf:PATH (a folder or a parquet file in the library's layouts).

    Raises `UsageError` where the library is not installed or the set is none of labelled images, `VitrailError` where
    it cannot be had.
    """
    said = address.removeprefix(HF_PREFIX)
    tables = opened(said)
    notes: list[str] = []
    splits: dict[str, Listing] = {}
    for name, table in tables.items():
        split = SPLIT_NAMES.get(str(name).lower())
        if split is None or split in splits:
            notes.append(f"{address} has also {name}, which no split takes in")
            continue
        splits[split] = listing(said, split, table, notes)
    splits = {split: found for split, found in splits.items() if len(found)}
    if set(splits) == {"train"}:  # the library's word for a set that is not divided
        splits = {"all": splits["train"]}
    if not splits:
        raise VitrailError(f"{address} has no labelled images in train, validation or test")
    return Source(Path(said).stem if Path(said).exists() else said.replace(":", "-"), splits, notes=notes)


def opened(said: str) -> dict[str, Any]:
    """The tables of a set by split."""
    try:
        import datasets
    except ImportError:
        raise UsageError("hf:NAME needs Hugging Face datasets", "pip install 'vitrail[hf]'") from None
    path = Path(said)
    try:
        with hushed():
            if path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
                found = datasets.load_from_disk(said)
            elif path.is_file():
                kind = {".arrow": "arrow", ".parquet": "parquet"}.get(path.suffix.lower())
                if kind is None:
                    raise UsageError(f"{said} is no parquet or arrow file", "hf:PATH takes those, and folders")
                found = datasets.load_dataset(kind, data_files=said)
            elif path.exists():
                found = datasets.load_dataset(said)
            else:
                if said.startswith(("/", ".")):
                    raise UsageError(f"there is no folder {said}")
                name, _, config = said.partition(":")
                console.log(f"asking the hub for {name}")
                found = datasets.load_dataset(name, config or None)
    except VitrailError:
        raise
    except ConnectionError as error:
        raise VitrailError(
            f"{HF_PREFIX}{said} is not here and the hub cannot be reached ({first_line(error)})",
            "what was fetched once is found again without a network; hf:PATH reads a folder or a parquet file",
        ) from None
    except Exception as error:  # the library raises nearly anything
        cause = error.__cause__ or error
        raise VitrailError(
            f"{HF_PREFIX}{said} cannot be loaded by datasets: {first_line(cause)}",
            "a set with several configurations is asked for as hf:NAME:CONFIG" if "onfig" in str(error) else None,
        ) from None
    return dict(found) if isinstance(found, dict) else {"train": found}


def listing(said: str, split: str, table: Any, notes: list[str]) -> Listing:
    """The labelled images of a split."""
    import datasets

    features = dict(table.features)
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise UsageError(f"{HF_PREFIX}{said} has no column of images", f"its columns are {', '.join(features)}")
    column, label = images[0], label_column(said, features, notes)
    classes, codes = codes_of(table, label, features[label])
    kept = np.flatnonzero(codes >= 0)
    if len(kept) < len(codes):
        notes.append(f"{HF_PREFIX}{said}: {len(codes) - len(kept)} images of {split} have no label and are left out")
    bare = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    names = names_of(said, split, bare, column).take(kept)
    return Listing(DatasetRows(bare, column, said, names, kept), names, Categorical(classes, codes[kept]))


def label_column(said: str, features: dict[str, Any], notes: list[str]) -> str:
    """The column that has the class: by its type, else by its name."""
    import datasets

    typed = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    fitting = typed or [name for name in features if name.lower() in LABELS]
    if not fitting:
        raise UsageError(f"{HF_PREFIX}{said} has no column of classes", f"its columns are {', '.join(features)}")
    chosen = next((name for name in LABELS if name in fitting), fitting[0])
    note = f"{HF_PREFIX}{said}: the class is what {chosen} says, not {', '.join(f for f in fitting if f != chosen)}"
    if len(fitting) > 1 and note not in notes:
        notes.append(note)
    return chosen


def codes_of(table: Any, column: str, kind: Any) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of classes, and for each row the number of its own; -1 where it has none."""
    import datasets
    import pyarrow.compute as pc

    values = table.data.column(column)
    if isinstance(kind, datasets.ClassLabel):
        return tuple(kind.names), pc.fill_null(values, -1).to_numpy().astype(np.int64)
    words = pc.dictionary_encode(values.cast("string")).combine_chunks()
    words = words.chunk(0) if hasattr(words, "chunk") else words
    table_of, _ = factorize(words.dictionary.to_pylist())
    number = {word: i for i, word in enumerate(table_of)}
    renumbered = np.array([number[word] for word in words.dictionary.to_pylist()] or [0], dtype=np.int64)
    codes = pc.fill_null(words.indices.cast("int64"), -1).to_numpy()
    return tuple(table_of), np.where(codes < 0, -1, renumbered[codes])


def names_of(said: str, split: str, table: Any, column: str) -> StringArray | NumberedNames:
    """The paths that the rows carry, where each has one of its own; else the split and a number."""
    import pyarrow.compute as pc

    chunks = [chunk.field("path") for chunk in table.data.column(column).chunks]
    total = sum(map(len, chunks))
    numbered = NumberedNames(f"{split}-", np.arange(total), DIGITS)
    if any(chunk.null_count for chunk in chunks) or not total:
        return numbered
    column_of_paths = pc.struct_field(table.data.column(column), "path")
    if pc.count_distinct(column_of_paths).as_py() < total:
        return numbered
    root = os.path.abspath(said) + os.sep
    return StringArray.from_strings(path.removeprefix(root) for chunk in chunks for path in chunk.to_pylist())


@contextmanager
def hushed() -> Iterator[None]:
    """Inside, the libraries do not say what is about to be said in one sentence."""
    import datasets

    if barred := console.quiet or not console.stderr.is_terminal:
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
        if barred:
            datasets.enable_progress_bars()
