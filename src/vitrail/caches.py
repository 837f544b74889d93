"""The caches on this machine: what they hold, how large they are, and how to remove files from them."""

import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vitrail.files import cache_folder

DAY_S = 86400


@dataclass(frozen=True)
class CacheKind:
    """Files that a part of vitrail keeps: what they are, and where, relative to the folder of all caches."""

    description: str
    pattern: str


CACHES = {
    "features": CacheKind("features of images, for probes and recipes on features", "features/*/*.safetensors"),
    "image-facts": CacheKind("what check knows about each image", "image-facts-*.sqlite*"),
    "shards": CacheKind("copies of remote shards", "shards/*.tar"),
    "graphs": CacheKind("ONNX files that the server made", "graphs/*.onnx"),
}


@dataclass(frozen=True)
class CachedFile:
    """A file of a cache, its size in bytes, and the seconds since it was used."""

    path: Path
    size: int
    unused_s: float


def list_cached_files(name: str) -> list[CachedFile]:
    """Returns the files of one cache."""
    now, files = time.time(), []
    for path in sorted(cache_folder().glob(CACHES[name].pattern)):
        with suppress(FileNotFoundError):  # another process has just made room
            status = path.stat()
            files.append(CachedFile(path, status.st_size, now - status.st_mtime))
    return files


def remove_cached_files(names: Collection[str], unused_days: float = 0.0) -> list[CachedFile]:
    """Removes the files of these caches that were last used at least `unused_days` ago; returns them.

    A process that reads a removed file at this moment can finish. Everything in a cache is computed or fetched again
    when it is needed.
    """
    removed = []
    for name in names:
        for file in list_cached_files(name):
            if file.unused_s >= unused_days * DAY_S:
                file.path.unlink(missing_ok=True)
                removed.append(file)
    return removed
