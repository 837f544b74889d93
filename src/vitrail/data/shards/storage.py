"""Bytes of a shard, from a disk or from any address that fsspec knows.

Shards from elsewhere are kept whole in a bounded cache, as many as fit; of the others each image is asked for by
itself. Training wants its images in any order, so a cache that always drops the oldest would drop what comes next.
"""

import contextlib
import hashlib
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.files import cache_folder

try:
    import fcntl
except ImportError:  # Windows: two processes may fetch the same shard, and one of them wins
    fcntl = None  # type: ignore[assignment]

OPEN = 128  # shards on disk that a process holds open
RETRY_DELAYS = (0.2, 1.0, 3.0)  # seconds before an address that did not answer is asked again
LIMIT = 10.0  # GiB of shards from elsewhere that are kept, unless $VITRAIL_CACHE_GIB says otherwise


@dataclass(frozen=True)
class Shard:
    """A tar file: where it lies, and by what it is known to be the same as before."""

    address: str
    size: int  # bytes; -1 where it is not there
    stamp: str = ""
    cacheable: bool = False  # a copy in the cache is worth its room


class StorageUnreachable(OSError):
    """An address that does not answer; the words say why."""


def is_remote(address: str) -> bool:
    """Whether it takes more than the operating system to read it."""
    return "://" in address and not address.startswith("file://")


def local(address: str) -> Path:
    """The path of an address on this machine."""
    return Path(address.removeprefix("file://"))


def stat_shard(address: str) -> Shard:
    """The shard with its size and what would change if it did; a size of -1 where it is not there."""
    try:
        if not is_remote(address):
            status = local(address).stat()
            return Shard(address, status.st_size, str(status.st_mtime_ns))
        system, path = resolve_filesystem(address)
        known = with_retries(address, lambda: system.info(path))
    except FileNotFoundError:
        return Shard(address, -1)
    signs = ("etag", "content-md5", "digest", "last-modified", "mtime", "created", "updated", "generation", "md5hash")
    stamp = "".join(f"{k}={v};" for k, v in sorted(known.items()) if k.lower().replace("lastmod", "last-mod") in signs)
    return Shard(address, int(known.get("size") or -1), stamp)


def list_tars(folder: str) -> list[str]:
    """The addresses of tar files in a folder and in its folders, in order."""
    if not is_remote(folder):
        root = local(folder)
        return [str(path) for path in sorted({*root.glob("*.tar"), *root.glob("*/*.tar")}) if path.is_file()]
    system, path = resolve_filesystem(folder)
    found = with_retries(folder, lambda: {*system.glob(f"{path}/*.tar"), *system.glob(f"{path}/*/*.tar")})
    return [str(system.unstrip_protocol(name)) for name in sorted(found)]


def mark_cacheable(shards: Sequence[Shard]) -> list[Shard]:
    """The shards, with those marked that are worth keeping: from the first on, as long as they fit into the cache."""
    room = cache_limit()
    marked = []
    for shard in shards:
        keep = is_remote(shard.address) and 0 <= shard.size <= room
        room -= shard.size if keep else 0
        marked.append(replace(shard, cacheable=keep))
    return marked


def cache_limit() -> int:
    """Bytes of shards that may be kept: $VITRAIL_CACHE_GIB, or 10 GiB."""
    said = os.environ.get("VITRAIL_CACHE_GIB") or LIMIT
    try:
        return int(float(said) * (1 << 30))
    except (ValueError, OverflowError):
        raise UsageError(f"VITRAIL_CACHE_GIB is {said!r}, which is no number", "say it in GiB, as 50") from None


def read_range(shard: Shard, start: int, length: int) -> bytes:
    """These bytes of a shard, fewer where it ends before; raises `OSError`."""
    if not is_remote(shard.address):
        return _open(local(shard.address), shard.stamp).read(start, length)
    if shard.cacheable and (path := fetch_copy(shard)):
        with contextlib.suppress(FileNotFoundError):  # another process has made room meanwhile
            return _open(path, shard.stamp).read(start, length)
    system, path_there = resolve_filesystem(shard.address)
    found: bytes = with_retries(shard.address, lambda: system.cat_file(path_there, start=start, end=start + length))
    if len(found) > length:  # a server that knows no ranges sends everything
        found = found[start : start + length]
    return found


def fetch_copy(shard: Shard) -> Path | None:
    """The copy of a shard in the cache, fetched where it is not there; None where it cannot be kept."""
    path = cache_folder() / "shards" / f"{cache_key(shard)}.tar"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(path.with_suffix(".lock")):
            if not path.exists():
                make_room(path.parent, shard.size)
                _fetch(shard.address, path, shard.size)
    except OSError:  # no room, or out of reach: reading will say what is wrong
        return None
    return path


def drop_copy(shard: Shard) -> None:
    """Drops the copy of a shard whose bytes have turned out wrong, and lets go of one that another has dropped."""
    path = cache_folder() / "shards" / f"{cache_key(shard)}.tar"
    with _lock:
        _handles.pop((path, shard.stamp), None)
    path.unlink(missing_ok=True)


def cache_key(shard: Shard) -> str:
    """A name for a shard as it is now."""
    where = shard.address if is_remote(shard.address) else str(local(shard.address).resolve())
    return hashlib.sha256(f"{where}\0{shard.size}\0{shard.stamp}".encode(errors="replace")).hexdigest()[:32]


def make_room(folder: Path, need: int) -> None:
    """Removes copies that were opened longest ago until so many bytes more are within the limit."""
    there = []
    for path in folder.glob("*.tar"):
        with contextlib.suppress(OSError):
            there.append((path.stat().st_mtime, path.stat().st_size, path))
    over = sum(size for _, size, _ in there) + need - cache_limit()
    for _, size, path in sorted(there):
        if over <= 0:
            return
        path.unlink(missing_ok=True)
        over -= size


@contextmanager
def open_shard(shard: Shard) -> Iterator[BinaryIO]:
    """The shard as a file that can be read from any place; raises `OSError`."""
    if not is_remote(shard.address):
        with local(shard.address).open("rb") as file:
            yield file
        return
    kept = None
    if shard.cacheable and (path := fetch_copy(shard)):
        with contextlib.suppress(FileNotFoundError):  # another process has made room meanwhile
            kept = path.open("rb")
    if kept:
        with kept:
            yield kept
    else:
        with tempfile.TemporaryDirectory(prefix="vitrail-") as aside:  # once, to be indexed
            copy = Path(aside, "shard.tar")
            _fetch(shard.address, copy, shard.size)
            with copy.open("rb") as file:
                yield file


def read_small_file(address: str, most: int) -> bytes | None:
    """A whole file of at most so many bytes; None where there is none. Raises `OSError` and `VitrailError`."""
    shard = stat_shard(address)
    if shard.size < 0:
        return None
    if shard.size > most:
        raise VitrailError(f"{address} has {shard.size:,} bytes, more than an index takes", "remove it")
    if not is_remote(address):
        return local(address).read_bytes()
    system, path = resolve_filesystem(address)
    found: bytes = with_retries(address, lambda: system.cat_file(path))
    return found


def resolve_filesystem(address: str) -> tuple[Any, str]:
    """The file system of an address and the path in it; raises `UsageError` for one that nobody here knows."""
    import fsspec
    from fsspec.core import url_to_fs

    protocol = address.split("://")[0]
    try:
        return url_to_fs(address)  # fsspec keeps it, for this process alone
    except ImportError as error:
        extra = "s3" if protocol == "s3" else "remote"
        raise UsageError(f"{protocol}:// cannot be read: {error}", f"pip install 'vitrail[{extra}]'") from None
    except ValueError:
        hint = did_you_mean(protocol, fsspec.available_protocols())
        raise UsageError(f"{protocol}:// is no kind of address that fsspec knows", hint) from None


def with_retries(address: str, ask: Callable[[], Any]) -> Any:
    """What was asked for, after some tries; raises `FileNotFoundError`, or `OutOfReach` saying why."""
    for wait in (*RETRY_DELAYS, None):
        try:
            return ask()
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # every protocol has errors of its own
            if wait is None:
                raise StorageUnreachable(f"{address} does not answer ({type(error).__name__}: {error})") from None
            time.sleep(wait)
    raise AssertionError  # the last try returns or raises


def _fetch(address: str, path: Path, size: int) -> None:
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".fetch-")
    os.close(handle)
    try:
        system, there = resolve_filesystem(address)
        with_retries(address, lambda: system.get_file(there, aside))
        if (got := os.path.getsize(aside)) != size:
            raise StorageUnreachable(f"{address} gave {got:,} bytes of {size:,}")
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Inside, no other process is."""
    with path.open("w") as lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    path.unlink(missing_ok=True)


class _Handle:
    """A file that is open for reading at any place, by any thread or process at once; closed when nobody has it."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def read(self, start: int, length: int) -> bytes:
        """The bytes; fewer where the file ends."""
        found = os.pread(self.number, length, start)
        while 0 < len(found) < length:  # the system may give less than it has
            more = os.pread(self.number, length - len(found), start + len(found))
            if not more:
                break
            found += more
        return found

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self.number)


_handles: OrderedDict[tuple[Path, str], _Handle] = OrderedDict()
_lock = threading.Lock()


def _open(path: Path, stamp: str) -> _Handle:
    with _lock:
        if handle := _handles.get((path, stamp)):
            _handles.move_to_end((path, stamp))
            return handle
    handle = _Handle(path)
    with contextlib.suppress(OSError):
        if path.parent == cache_folder() / "shards":
            os.utime(path)  # it is in use: others go first
    with _lock:
        _handles[path, stamp] = handle
        while len(_handles) > OPEN:
            _handles.popitem(last=False)
    return handle


def _start_anew() -> None:
    """In a forked process: another thread may have held the lock."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
