"""Local copies of remote shards, in a cache of bounded size.

Shards are copied whole, in their order, as long as they fit; images of the other shards are read one by one. A cache
that dropped the least recently used shard would not help training, which reads its images in random order.
"""

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from vitrail.data.shards.storage import Shard, download, is_remote, local_path, open_files, read_remote_range
from vitrail.files import cache_folder, cache_limit, make_room, mark_used

try:
    import fcntl
except ImportError:  # Windows: two processes may copy the same shard; one of the copies stays
    fcntl = None  # type: ignore[assignment]

PART_SUFFIX = ".part"
MAX_PART_AGE_S = 86400  # of a part, where locks do not exist


def mark_cacheable(shards: Sequence[Shard]) -> list[Shard]:
    """Returns the shards with the first remote ones marked, as long as they fit into the cache together."""
    free = cache_limit()
    marked = []
    for shard in shards:
        fits = is_remote(shard.address) and 0 <= shard.size <= free
        free -= shard.size if fits else 0
        marked.append(replace(shard, cacheable=fits))
    return marked


def cache_key(shard: Shard) -> str:
    """Returns a name for this version of a shard."""
    address = shard.address if is_remote(shard.address) else str(local_path(shard.address).resolve())
    text = f"{address}\0{shard.size}\0{shard.version}"
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:32]


def copies_folder() -> Path:
    return cache_folder() / "shards"


def copy_path(shard: Shard) -> Path:
    return copies_folder() / f"{cache_key(shard)}.tar"


def read_range(shard: Shard, start: int, length: int) -> bytes:
    """Reads these bytes of a shard, fewer if it ends before; raises `OSError`."""
    if not is_remote(shard.address):
        return open_files.get(local_path(shard.address), shard.version).read(start, length)
    if shard.cacheable and (path := fetch_copy(shard)):
        with contextlib.suppress(FileNotFoundError):  # another process has just made room
            return open_files.get(path, shard.version, on_open=mark_used).read(start, length)
    return read_remote_range(shard.address, start, length)


@contextmanager
def open_shard(shard: Shard) -> Iterator[BinaryIO]:
    """Yields the shard as a seekable file; raises `OSError`."""
    if not is_remote(shard.address):
        with local_path(shard.address).open("rb") as file:
            yield file
        return
    copy: BinaryIO | None = None
    if shard.cacheable and (path := fetch_copy(shard)):
        with contextlib.suppress(FileNotFoundError):  # another process has just made room
            copy = path.open("rb")
    if copy:
        with copy:
            yield copy
    else:
        with tempfile.TemporaryDirectory(prefix="vitrail-") as folder:
            path = Path(folder, "shard.tar")
            download(shard.address, path, shard.size)
            with path.open("rb") as file:
                yield file


def fetch_copy(shard: Shard) -> Path | None:
    """Returns the copy of a shard, made if needed; None if it cannot be made: reading then reports the error."""
    path = copy_path(shard)
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(path.with_suffix(".lock")):
            if not path.exists():
                remove_abandoned_parts(path.parent)
                make_room(path.parent, "*.tar", shard.size)
                _download_atomically(shard, path)
    except OSError:
        return None
    return path


def drop_copy(shard: Shard) -> None:
    """Removes a damaged copy, and closes one that another process has removed."""
    path = copy_path(shard)
    open_files.forget(path, shard.version)
    path.unlink(missing_ok=True)


def remove_abandoned_parts(folder: Path) -> None:
    """Removes the parts of copies that no process is downloading: their locks are free."""
    for path in folder.glob(f"*{PART_SUFFIX}"):
        lock = folder / f"{path.name.partition('.')[0]}.lock"
        with contextlib.suppress(OSError), lock.open("a") as file:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            elif time.time() - path.stat().st_mtime < MAX_PART_AGE_S:
                continue
            path.unlink()
            lock.unlink()
    for path in folder.glob(".fetch-*"):  # the name of a part before 0.2
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > MAX_PART_AGE_S:
                path.unlink()


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Locks a file against other processes; removes it at the end."""
    with path.open("w") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    path.unlink(missing_ok=True)


def _download_atomically(shard: Shard, path: Path) -> None:
    """Raises `OSError`, unlike `write_atomically`; a copy need not survive a power failure, so nothing is synced."""
    part = path.with_suffix(f".{os.getpid()}{PART_SUFFIX}")
    try:
        download(shard.address, part, shard.size)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
