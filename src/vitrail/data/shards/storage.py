"""Bytes of shards, from a disk or from any URL that fsspec supports."""

import contextlib
import functools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vitrail.data.formats import is_hidden
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.installation import install_hint

MAX_OPEN_FILES = 128  # shards on disk that a process holds open
RETRY_DELAYS_S = (0.2, 1.0, 3.0)
# what a file system may report that changes with the content
VERSION_KEYS = frozenset(
    ("etag", "content-md5", "digest", "last-modified", "mtime", "created", "updated", "generation", "md5hash")
)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Shard:
    """A tar file."""

    address: str
    size: int  # bytes; -1 if it does not exist
    version: str = ""  # changes with the content; empty if the file system reports nothing that does
    cacheable: bool = False  # a local copy fits into the cache


class StorageUnreachable(OSError):
    """An address that does not answer; the text says why."""


def is_remote(address: str) -> bool:
    """Returns whether reading an address needs fsspec."""
    return "://" in address and not address.startswith("file://")


def local_path(address: str) -> Path:
    """Returns the path of an address on this machine."""
    return Path(address.removeprefix("file://"))


def stat_shard(address: str) -> Shard:
    """Returns the shard with its size and version; the size is -1 if it does not exist."""
    try:
        if not is_remote(address):
            status = local_path(address).stat()
            return Shard(address, status.st_size, str(status.st_mtime_ns))
        filesystem, path = resolve_filesystem(address)
        info = with_retries(address, lambda: filesystem.info(path))
    except FileNotFoundError:
        return Shard(address, -1)
    version = "".join(
        f"{key}={value};"
        for key, value in sorted(info.items())
        if key.lower().replace("lastmod", "last-mod") in VERSION_KEYS
    )
    return Shard(address, int(info.get("size") or -1), version)


def list_tars(folder: str) -> list[str]:
    """Returns the addresses of the tar files in a folder and in its subfolders, sorted."""
    if not is_remote(folder):
        root = local_path(folder)
        files = sorted({*root.glob("*.tar"), *root.glob("*/*.tar")})
        visible = [path for path in files if not any(map(is_hidden, path.relative_to(root).parts))]
        return [str(path) for path in visible if path.is_file() or path.is_symlink()]  # a link to nothing is missing
    filesystem, path = resolve_filesystem(folder)
    paths = with_retries(folder, lambda: {*filesystem.glob(f"{path}/*.tar"), *filesystem.glob(f"{path}/*/*.tar")})
    return [str(filesystem.unstrip_protocol(path)) for path in sorted(paths)]


def read_remote_range(address: str, start: int, length: int) -> bytes:
    """Reads these bytes, fewer if the file ends before."""
    filesystem, path = resolve_filesystem(address)
    content: bytes = with_retries(address, lambda: filesystem.cat_file(path, start=start, end=start + length))
    if len(content) > length:  # a server without range requests sends the whole file
        content = content[start : start + length]
    return content


def read_small_file(address: str, max_bytes: int) -> bytes | None:
    """Reads a whole file, None if there is none; raises `VitrailError` if it is too large, `OSError` if it fails."""
    file = stat_shard(address)
    if file.size < 0:
        return None
    if file.size > max_bytes:
        raise VitrailError(f"{address} has {file.size:,} bytes, too many for an index", "remove it")
    if not is_remote(address):
        return local_path(address).read_bytes()
    filesystem, path = resolve_filesystem(address)
    content: bytes = with_retries(address, lambda: filesystem.cat_file(path))
    return content


def download(address: str, path: Path, size: int) -> None:
    """Copies a remote file to a local path; raises `StorageUnreachable` if it does not have the expected size."""
    filesystem, remote_path = resolve_filesystem(address)
    with_retries(address, lambda: filesystem.get_file(remote_path, str(path)))
    if (received := path.stat().st_size) != size:
        raise StorageUnreachable(f"{address} sent {received:,} bytes of {size:,}")


def resolve_filesystem(address: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a URL and the path in it; raises `UsageError` for an unknown protocol."""
    import fsspec
    from fsspec.core import url_to_fs

    forget_thread_after_fork()
    protocol = address.split("://")[0]
    try:
        return url_to_fs(address)  # fsspec caches it per process
    except ImportError as error:
        extra = "s3" if protocol == "s3" else "remote"
        raise UsageError(f"{protocol}:// cannot be read: {error}", install_hint(extra)) from None
    except ValueError:
        hint = did_you_mean(protocol, fsspec.available_protocols())
        raise UsageError(f"{protocol}:// is not a protocol that fsspec knows", hint) from None


@functools.cache
def forget_thread_after_fork() -> None:
    """Lets a forked process start its own thread of fsspec; older versions wait for the parent's for ever."""
    from fsspec.asyn import iothread, loop

    def forget() -> None:
        iothread[0] = loop[0] = None

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)


def with_retries(address: str, request: Callable[[], Result]) -> Result:
    """Returns the result of a request, which is repeated after most errors.

    Raises `FileNotFoundError`, `PermissionError`, or `StorageUnreachable` after the last attempt.
    """
    for delay in (*RETRY_DELAYS_S, None):
        try:
            return request()
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # every protocol raises its own types
            if delay is None:
                raise StorageUnreachable(f"{address} does not answer ({type(error).__name__}: {error})") from None
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


class OpenFile:
    """A file open for reading by any thread and any forked process at once; closed when nothing refers to it."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def read(self, start: int, length: int) -> bytes:
        """Reads these bytes, fewer if the file ends before."""
        content = os.pread(self.descriptor, length, start)
        while 0 < len(content) < length:  # the system may return less than there is
            more = os.pread(self.descriptor, length - len(content), start + len(content))
            if not more:
                break
            content += more
        return content

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self.descriptor)


class OpenFiles:
    """The files that this process has open, least recently used first, at most `MAX_OPEN_FILES`."""

    def __init__(self) -> None:
        self.files: OrderedDict[tuple[Path, str], OpenFile] = OrderedDict()
        self.lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._replace_lock)

    def get(self, path: Path, version: str, on_open: Callable[[Path], object] = lambda path: None) -> OpenFile:
        """Returns the open file of this path and version; opens it first if needed and calls `on_open` then."""
        with self.lock:
            if file := self.files.get((path, version)):
                self.files.move_to_end((path, version))
                return file
        file = OpenFile(path)
        on_open(path)
        with self.lock:
            self.files[path, version] = file
            while len(self.files) > MAX_OPEN_FILES:
                self.files.popitem(last=False)
        return file

    def forget(self, path: Path, version: str) -> None:
        with self.lock:
            self.files.pop((path, version), None)

    def _replace_lock(self) -> None:
        """In a forked process: a thread that does not exist there may hold the lock."""
        self.lock = threading.Lock()


open_files = OpenFiles()
