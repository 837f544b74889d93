"""Atomic writes of files and folders, and checks of disk space and permissions."""

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vitrail.errors import UsageError, VitrailError

DEFAULT_CACHE_GIB = 10.0


def cache_folder() -> Path:
    """Returns the folder for results that can be recomputed: $VITRAIL_CACHE, or ~/.cache/vitrail."""
    return Path(os.environ.get("VITRAIL_CACHE") or Path.home() / ".cache" / "vitrail")


def cache_limit() -> int:
    """Returns the size limit of each kind of cached files in bytes: $VITRAIL_CACHE_GIB, or 10 GiB."""
    value = os.environ.get("VITRAIL_CACHE_GIB") or DEFAULT_CACHE_GIB
    try:
        return int(float(value) * (1 << 30))
    except (ValueError, OverflowError):
        raise UsageError(f"VITRAIL_CACHE_GIB is {value!r}, which is not a number", "set it in GiB, as 50") from None


def make_room(folder: Path, pattern: str, needed_bytes: int) -> None:
    """Removes the cached files that were used longest ago until `needed_bytes` more are within the limit."""
    files = []
    for path in folder.glob(pattern):
        with suppress(OSError):
            status = path.stat()
            files.append((status.st_mtime, status.st_size, path))
    excess = sum(size for _, size, _ in files) + needed_bytes - cache_limit()
    for _, size, path in sorted(files):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size


def mark_used(path: Path) -> None:
    """Notes that a cached file is used now: `make_room` removes the oldest first."""
    with suppress(OSError):
        os.utime(path)


def absolute_if_exists(path: str | Path) -> str:
    """Returns an existing path as an absolute path, and anything else, such as a model's name, unchanged."""
    return str(Path(path).resolve()) if os.path.exists(path) else str(path)


LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_lfs_pointer(path: Path) -> None:
    """Raises `VitrailError` if a file is only a Git LFS pointer: the repository was cloned without its large files."""
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError:  # the code that reads the file reports it
        return
    if start == LFS_POINTER:
        raise VitrailError(
            f"{path} is a Git LFS pointer, not the file itself", "run git lfs pull in its repository to get the file"
        )


def base_name(path: str | Path) -> str:
    """Returns the name of a folder, dots included, or that of a file without its suffix."""
    path = Path(path)
    return path.stem if path.is_file() else path.resolve().name if path.is_dir() else path.name


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file, then renames it to `path`; an existing file stays intact until then.

    Raises `VitrailError` if the path cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = create_beside(path, lambda new: os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)))
        try:
            mode = temporary.stat().st_mode
            write(temporary)
            os.chmod(temporary, mode)  # safetensors replaces the file by one that only its owner may read
            fsync(temporary)
            os.replace(temporary, path)
            fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise VitrailError(
            f"{path} cannot be written: {describe_write_error(error)}", "free some space, or choose another path"
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
        temporary = create_beside(parent / path.name, Path.mkdir)
        try:
            yield temporary
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


def write_pair_atomically(path: Path, suffix: str, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary `path` and the file with another suffix beside it; moves both to their places.

    `path` comes last, so that it exists only with the other. Raises `UsageError` if one exists, `VitrailError` if the
    disk refuses.
    """
    first = path.with_suffix(suffix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = create_beside(path.parent / path.stem, Path.mkdir)
        try:
            write(folder / path.name)
            for each in (first, path):
                fsync(folder / each.name)
                if os.path.lexists(each):
                    raise UsageError(f"{each} already exists", "choose another path, or move it away")
            os.rename(folder / first.name, first)
            try:
                os.rename(folder / path.name, path)
            except OSError:
                first.unlink()
                raise
            fsync(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise VitrailError(
            f"{path} cannot be written: {describe_write_error(error)}", "free some space, or choose another path"
        ) from None


def check_new_folder(path: Path) -> None:
    """Raises `UsageError` if something other than an empty folder exists at the path."""
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{path} already exists", "choose another path, or move it away")


def create_beside(path: Path, create: Callable[[Path], object]) -> Path:
    """Creates a temporary file or folder with a new hidden name beside `path`, and returns its path.

    Unlike the functions of `tempfile`, it has the mode that the umask allows. To read the umask, a process would have
    to set it, also for its other threads.
    """
    while True:
        temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
        try:
            create(temporary)
        except FileExistsError:
            continue
        return temporary


def existing_parent(path: Path) -> Path:
    """Returns the path itself if it exists, else the nearest existing folder above it."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def check_writable(path: Path, hint: str = "choose another folder") -> None:
    """Raises `VitrailError` if no file can be created in a folder, or in the nearest existing one above it."""
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
    """Returns a number of bytes in GB, or in MB below one GB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def describe_write_error(error: Exception) -> str:
    """Returns why a file could not be written; safetensors wraps the system's error in its own text."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text.rsplit("I/O error: ", 1)[-1]


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json_object(path: Path, max_bytes: int = 1 << 20) -> dict[str, Any]:
    """Reads a JSON object; raises `ValueError` if the file is larger than `max_bytes` or holds anything else."""
    if path.stat().st_size > max_bytes:
        raise ValueError(f"{path.name} is larger than {max_bytes:,} bytes")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return document


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def create_json(path: Path, document: Any) -> None:
    """Writes a JSON file that must not exist yet, whole and in one moment; raises `FileExistsError` if it exists.

    On a file system without hard links two processes at the same moment may both succeed; the later file stays.
    """
    temporary = path.with_name(f".{path.stem}-{uuid4().hex}.json")  # a process ID is not unique across machines
    save_json(temporary, document)
    fsync(temporary)
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        if path.exists():
            raise FileExistsError(f"{path} exists") from None
        os.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# The single operations of a checkpoint. Tests make each of them fail in turn.


def make_folder(path: Path) -> None:
    path.mkdir()


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path)


def save_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def rename(old: Path, new: Path) -> None:
    os.rename(old, new)


def remove_folder(path: Path) -> None:
    """Removes a folder with its content; what cannot be removed stays."""
    shutil.rmtree(path, ignore_errors=True)
