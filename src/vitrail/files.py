"""Writing so that a file is either whole or not there."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vitrail.errors import UsageError, VitrailError


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
            set_default_mode(Path(aside), 0o666)
            fsync(Path(aside))
            os.replace(aside, path)
            fsync(path.parent)
        finally:
            Path(aside).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise VitrailError(
            f"{path} cannot be written: {describe_write_error(error)}", "make room, or choose another place"
        ) from None


@contextmanager
def write_folder_atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path` at the end; after an error, nothing of it remains.

    `path` may be an empty folder. Raises `UsageError` if it is anything else that exists, `VitrailError` if the disk
    refuses.
    """
    check_new_folder(path)
    parent = path.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=parent, prefix=f".{path.name}-"))
        try:
            yield temporary
            set_default_mode(temporary, 0o777)
            fsync(temporary)
            check_new_folder(path)
            if path.is_dir():
                path.rmdir()
            os.rename(temporary, path)
            fsync(parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise VitrailError(
            f"{path} cannot be written: {describe_write_error(error)}", "free some space, or choose another folder"
        ) from None


def check_new_folder(path: Path) -> None:
    """Raises `UsageError` if something other than an empty folder exists at the path."""
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{path} already exists", "choose another path, or move it away")


def set_default_mode(path: Path, mode: int) -> None:
    """Gives a temporary file or folder, which only its owner may read, the mode that the umask allows."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, mode & ~mask)


def existing_parent(path: Path) -> Path:
    """The path itself if it exists, else the nearest folder above it that does."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def check_writable(path: Path, hint: str = "choose another folder") -> None:
    """Raises `VitrailError` if no file can be made in a folder, or in the nearest one above it that exists."""
    folder = existing_parent(path)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
            file.flush()
    except OSError as error:
        raise VitrailError(f"{folder} cannot be written: {describe_write_error(error)}", hint) from None


def check_free_space(path: Path, needed_bytes: int, hint: str = "free some space, or choose another folder") -> None:
    """Raises `VitrailError` if the disk of a path has fewer free bytes; the path need not exist."""
    folder = existing_parent(path)
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise VitrailError(
            f"{path} needs {format_bytes(needed_bytes)} and {folder} has {format_bytes(free_bytes)} left", hint
        )


def format_bytes(size: int) -> str:
    """A number of bytes in GB, or in MB below one GB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


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
