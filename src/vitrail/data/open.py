"""Opens DATA: the address chooses the reader that lists the images, and the source is split for training."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vitrail.data.addresses import HF_PREFIX
from vitrail.data.bands import Channels
from vitrail.data.builtin import BUILTIN_DATASETS, read_builtin_dataset
from vitrail.data.folder import read_image_folder
from vitrail.data.hf import read_hf_dataset
from vitrail.data.python_data import Data, read_python_data
from vitrail.data.shards import is_shards, list_shards
from vitrail.data.source import Source
from vitrail.data.split import Splits, build_splits
from vitrail.data.table import read_table
from vitrail.data.table_rows import TABLE_EXTENSIONS, has_image_bytes
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.files import absolute_if_exists


def absolute_address(data: Data) -> str:
    """Returns an address that means the same in any working folder; names and URLs are returned unchanged.

    Raises `UsageError` for an object of Python.
    """
    address = require_address(data)
    text = str(address)
    if is_builtin(address):
        return text
    if text.startswith(HF_PREFIX):
        return HF_PREFIX + absolute_if_exists(text.removeprefix(HF_PREFIX))
    return str(Path(text).resolve()) if "://" not in text and is_shards(text) else absolute_if_exists(text)


def require_address(data: Data) -> str | Path:
    """Returns an address unchanged; raises `UsageError` for an object of this process, which no other one can open."""
    if isinstance(data, str | Path):
        return data
    raise UsageError(
        f"other processes must open the data, and a {type(data).__name__} is only in this one",
        "give the address of a folder, table or shards",
    )


def open_source(
    data: Data,
    channels: Channels | None = None,
    missing_ok: bool = False,
    task: str | None = None,
    group_pattern: str | None = None,
) -> Source:
    """Lists the images of DATA: a built-in name, a folder, a table, shards, hf:NAME, or an object of Python.

    With `channels`, images are read as gray (1), color (3) or bands; without, the images decide. `task` says what the
    labels mean, if not they themselves; `group_pattern` finds the groups in the names. Raises `VitrailError` if a
    listed file or shard does not exist, unless `missing_ok`.
    """
    source = read_address(data) if isinstance(data, str | Path) else read_python_data(data)
    if (errors := [*source.missing, *source.damaged]) and not missing_ok:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise VitrailError(errors[0] + more, source.hint)
    source = source.with_channels(channels) if channels else source.with_own_channels()
    return source.with_task(task).with_groups(group_pattern)


def read_address(address: str | Path) -> Source:
    """Chooses the reader of an address and returns what it lists, missing files included."""
    read = next(read for matches, read in READERS if matches(address))
    return replace(read(address), address=str(address))


def is_builtin(address: str | Path) -> bool:
    """Returns whether this is the name of a built-in data set; a `Path` never is."""
    return isinstance(address, str) and address in BUILTIN_DATASETS


def is_hf(address: str | Path) -> bool:
    return str(address).startswith(HF_PREFIX)


def is_table(address: str | Path) -> bool:
    return Path(address).suffix.lower() in TABLE_EXTENSIONS and os.path.isfile(address)


def read_builtin(address: str | Path) -> Source:
    """Reads a built-in data set, and notes that a folder of its name is not read."""
    source = read_builtin_dataset(str(address))
    if Path(address).exists():
        source.notes.append(f"using the built-in {address}; write ./{address} for the folder of that name")
    return source


def read_any_table(address: str | Path) -> Source:
    """Reads a table of paths, or a parquet file that has the images in it."""
    path = Path(address)
    if path.suffix.lower() == ".parquet" and has_image_bytes(path):
        return read_hf_dataset(f"{HF_PREFIX}{path}")
    return read_table(path)


def refuse_address(address: str | Path) -> Source:
    """Raises `UsageError` for an address that no reader takes."""
    path = Path(address)
    if os.path.isfile(path):
        raise UsageError(
            f"{path} is not a folder, a table ({', '.join(TABLE_EXTENSIONS)}), a tar shard or a built-in name"
        )
    hint = did_you_mean(path.name, BUILTIN_DATASETS) if path.name == str(address) else None
    raise UsageError(f"there is no folder, table or built-in data set {str(address)!r}", hint)


READERS: tuple[tuple[Callable[[str | Path], bool], Callable[[str | Path], Source]], ...] = (
    (is_builtin, read_builtin),  # takes precedence over a folder of that name
    (is_hf, lambda address: read_hf_dataset(str(address))),
    (is_shards, list_shards),
    (os.path.isdir, lambda address: read_image_folder(Path(address))),  # Path.is_dir() raises for names too long
    (is_table, read_any_table),
    (lambda address: True, refuse_address),
)


def open_data(
    data: Data,
    *,
    channels: Channels | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    split_seed: int = 0,
    missing_ok: bool = False,
) -> Splits:
    """Opens the images of DATA for training; `build_splits` explains the arguments and errors."""
    source = open_source(data, channels, missing_ok)
    return build_splits(source, validation=validation, test=test, split_seed=split_seed)
