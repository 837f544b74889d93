"""Writing so that a file is either whole or not there."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vitrail.errors import VitrailError


def cache_folder() -> Path:
    """Where things lie that can be computed again: $VITRAIL_CACHE, or ~/.cache/vitrail. It may be emptied at will."""
    return Path(os.environ.get("VITRAIL_CACHE") or Path.home() / ".cache" / "vitrail")


def absolute_if_exists(path: str | Path) -> str:
    """A path that is there in full, so that it is found from any folder; anything else, such as a name, as it is."""
    return str(Path(path).resolve()) if os.path.exists(path) else str(path)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file aside, then moves it to `path`; an existing file stays whole until that moment.

    Raises `VitrailError` where the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
        try:
            write(Path(aside))
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(aside, 0o666 & ~mask)  # mkstemp makes files that only their owner may read
            fsync(Path(aside))
            os.replace(aside, path)
            fsync(path.parent)
        finally:
            Path(aside).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise VitrailError(
            f"{path} cannot be written: {describe_write_error(error)}", "make room, or choose another place"
        ) from None


def describe_write_error(error: Exception) -> str:
    """Why a file could not be written, in words; safetensors wraps the system's own error in its text."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text.rsplit("I/O error: ", 1)[-1]


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    write_atomically(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(path: Path, document: Any) -> None:
    """A JSON file, whole or not at all."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def fsync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# The single operations that a checkpoint is made of: tests let each of them fail in turn.


def make_folder(path: Path) -> None:
    """A new folder in one that is there."""
    path.mkdir()


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file."""
    save_file(tensors, path)


def save_json(path: Path, document: Any) -> None:
    """A JSON file."""
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def rename(old: Path, new: Path) -> None:
    """The same file or folder under a name that is free."""
    os.rename(old, new)


def remove_folder(path: Path) -> None:
    """A folder with everything in it is gone; what cannot be removed stays."""
    shutil.rmtree(path, ignore_errors=True)
