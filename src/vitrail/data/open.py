"""Opens DATA: the address chooses the reader that lists the images, and the source is split for training."""

import os
from pathlib import Path

from vitrail.data.builtin import BUILTIN_DATASETS, read_builtin_dataset
from vitrail.data.folder import read_image_folder
from vitrail.data.hf import HF_PREFIX, read_hf_dataset
from vitrail.data.shards import is_shards, list_shards
from vitrail.data.source import Source
from vitrail.data.split import Splits, build_splits
from vitrail.data.table import read_table
from vitrail.data.table_rows import TABLE_EXTENSIONS, has_image_bytes
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.files import absolute_if_exists


def absolute_address(address: str | Path) -> str:
    """Returns an address that means the same in any working folder; names and URLs are returned unchanged."""
    text = str(address)
    if isinstance(address, str) and text in BUILTIN_DATASETS:  # takes precedence over a folder of that name
        return text
    if text.startswith(HF_PREFIX):
        return HF_PREFIX + absolute_if_exists(text.removeprefix(HF_PREFIX))
    return str(Path(text).resolve()) if "://" not in text and is_shards(text) else absolute_if_exists(text)


def open_source(address: str | Path, channels: int | None = None, missing_ok: bool = False) -> Source:
    """Lists the images at an address: a built-in name, a folder, a table, shards, or hf:NAME.

    With `channels`, images are read as gray (1) or color (3). Raises `VitrailError` if a listed file or shard does not
    exist, unless `missing_ok`.
    """
    source = read_source(address)
    if (errors := [*source.missing, *source.damaged]) and not missing_ok:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise VitrailError(errors[0] + more, source.hint)
    return source.with_channels(channels) if channels else source


def read_source(address: str | Path) -> Source:
    """Chooses the reader of an address and returns what it lists, missing files included."""
    if isinstance(address, str) and address in BUILTIN_DATASETS:
        source = read_builtin_dataset(address)
        if Path(address).exists():
            source.notes.append(f"using the built-in {address}; write ./{address} for the folder of that name")
        return source
    if str(address).startswith(HF_PREFIX):
        return read_hf_dataset(str(address))
    if is_shards(address):
        return list_shards(address)
    path = Path(address)
    if os.path.isdir(path):  # not path.is_dir(), which raises for names that are too long
        return read_image_folder(path)
    if path.suffix.lower() in TABLE_EXTENSIONS and os.path.isfile(path):
        if path.suffix.lower() == ".parquet" and has_image_bytes(path):
            return read_hf_dataset(f"{HF_PREFIX}{path}")
        return read_table(path)
    if os.path.isfile(path):
        raise UsageError(
            f"{path} is not a folder, a table ({', '.join(TABLE_EXTENSIONS)}), a tar shard or a built-in name"
        )
    hint = did_you_mean(path.name, BUILTIN_DATASETS) if path.name == str(address) else None
    raise UsageError(f"there is no folder, table or built-in data set {str(address)!r}", hint)


def open_data(
    address: str | Path,
    *,
    channels: int | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    split_seed: int = 0,
    missing_ok: bool = False,
) -> Splits:
    """Opens the images at an address for training; `build_splits` explains the arguments and errors."""
    source = open_source(address, channels, missing_ok)
    return build_splits(source, str(address), validation=validation, test=test, split_seed=split_seed)
