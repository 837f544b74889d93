"""What a person may write for a set of shards: a folder, a tar file, a pattern, on disk or anywhere."""

import glob
import itertools
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath

from vitrail.data.shards.index import INDEX_FILE
from vitrail.data.shards.storage import is_remote, local, resolve_filesystem, with_retries
from vitrail.data.source import SPLIT_NAMES
from vitrail.errors import UsageError

MOST = 1_000_000  # shards that braces may mean
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_shards(address: str | Path) -> bool:
    """Whether an address means tar shards: an address of fsspec, a .tar, a pattern of them, a folder that holds them.

    A folder with class folders in it is one of images, whatever tar files lie beside them.
    """
    said = str(address)
    if is_remote(said) or said.startswith("file://") or said.lower().endswith(".tar"):
        return True
    folder = Path(said)
    try:
        if (folder / INDEX_FILE).is_file():
            return True
        inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__"))]
    except OSError:
        return False
    folders = [path for path in inside if path.is_dir()]
    if not folders:
        return any(path.suffix == ".tar" for path in inside)
    return all(path.name.lower() in SPLIT_NAMES and holds_only_tars(path) for path in folders)


def holds_only_tars(folder: Path) -> bool:
    """Whether there are tar files in a folder and no folders."""
    try:
        inside = list(folder.iterdir())
    except OSError:
        return False
    return any(path.suffix == ".tar" for path in inside) and not any(path.is_dir() for path in inside)


def expand_address(address: str) -> list[str]:
    """The addresses that braces and stars mean: {000..009} counts, {a,b} lists. Raises `UsageError`."""
    found = expand_braces(address)
    if not any(c in pattern for pattern in found for c in "*?["):
        return found
    return [name for pattern in found for name in matching(pattern)]


def matching(pattern: str) -> list[str]:
    """The files that a pattern with stars means, in order."""
    if not is_remote(pattern):
        return sorted(glob.glob(str(local(pattern))))
    system, path = resolve_filesystem(pattern)
    return [str(system.unstrip_protocol(name)) for name in sorted(with_retries(pattern, lambda: system.glob(path)))]


def expand_braces(pattern: str) -> list[str]:
    """What a shell would make of the braces in a pattern; raises `UsageError`."""
    found = list(itertools.islice(unfolded(pattern), MOST + 1))
    if len(found) > MOST:
        raise UsageError(f"{pattern} means more than {MOST:,} shards", "take a shorter range")
    return found


def unfolded(pattern: str) -> Iterator[str]:
    """The same, one after the other: the first braces by what is in them, then the others behind them."""
    start = pattern.find("{")
    if start < 0:
        yield pattern
        return
    depth, commas, end = 0, [start], -1
    for at in range(start, len(pattern)):
        depth += (pattern[at] == "{") - (pattern[at] == "}")
        if pattern[at] == "," and depth == 1:
            commas.append(at)
        if not depth:
            end = at
            break
    if end < 0:
        raise UsageError(f"{pattern}: a brace is not closed", "write {000..009} or {a,b}")
    inside = pattern[start + 1 : end]
    if counted := RANGE.fullmatch(inside):
        words: Iterable[str] = numbers(*counted.groups())
    elif len(commas) > 1:
        words = [pattern[a + 1 : b] for a, b in pairwise([*commas, end])]
    else:
        raise UsageError(f"{pattern}: {{{inside}}} is neither a range nor a list", "write {000..009} or {a,b}")
    for word in words:
        for inner in unfolded(word):
            for rest in unfolded(pattern[end + 1 :]):
                yield pattern[:start] + inner + rest


def numbers(first: str, last: str) -> Iterator[str]:
    """From one number to another, as wide as they are written where one begins with 0."""
    a, b = int(first), int(last)
    digits = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    return (f"{number:0{digits}d}" for number in range(a, b + (1 if a <= b else -1), 1 if a <= b else -1))


def parent_folder(address: str) -> str:
    """The folder that a shard lies in."""
    return address.rpartition("/")[0] if is_remote(address) else str(local(address).parent)


def join_address(folder: str, file: str) -> str:
    """The address of a file in a folder."""
    return f"{folder.rstrip('/')}/{file}" if is_remote(folder) else str(local(folder) / file)


def shard_set_name(address: str) -> str:
    """A name for a set of shards: of the folder, or of the files without their numbers."""
    if not is_remote(address) and local(address).is_dir():
        return local(address).resolve().name
    path = PurePosixPath(re.sub(r"\{.*\}|[*?]", "", address))
    stem = re.sub(r"[-_.\d]+$", "", path.stem if path.suffix == ".tar" else path.name)
    return stem if stem and stem not in ("shards", *SPLIT_NAMES) else path.parent.name or stem or "shards"
