"""The address of a set of tar shards: a path or a URL of a folder or a file, with braces or wildcards."""

import glob
import itertools
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from vitrail.data.formats import is_hidden
from vitrail.data.shards.index import INDEX_FILE
from vitrail.data.shards.storage import is_remote, local_path, resolve_filesystem, with_retries
from vitrail.data.source import SPLIT_NAMES
from vitrail.errors import UsageError

MAX_SHARDS = 1_000_000  # that braces may expand to
NUMBER_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_shards(address: str | Path) -> bool:
    """Returns whether an address means tar shards: a URL, a .tar file, a pattern of them, or a folder of them.

    A folder with class folders in it is a folder of images, whatever tar files it also has.
    """
    text = str(address)
    if is_remote(text) or text.startswith("file://") or text.lower().endswith(".tar"):
        return True
    folder = Path(text)
    try:
        if (folder / INDEX_FILE).is_file():
            return True
        entries = [path for path in folder.iterdir() if not is_hidden(path.name)]
    except OSError:
        return False
    subfolders = [path for path in entries if path.is_dir()]
    if not subfolders:
        return any(path.suffix == ".tar" for path in entries)
    return all(path.name.lower() in SPLIT_NAMES and has_only_tars(path) for path in subfolders)


def has_only_tars(folder: Path) -> bool:
    """Returns whether a folder has tar files and no folders."""
    try:
        entries = [path for path in folder.iterdir() if not is_hidden(path.name)]
    except OSError:
        return False
    return any(path.suffix == ".tar" for path in entries) and not any(path.is_dir() for path in entries)


def expand_address(address: str) -> list[str]:
    """Expands braces and wildcards into the addresses of shards; raises `UsageError` as `expand_braces` does."""
    patterns = expand_braces(address)
    if not any(c in pattern for pattern in patterns for c in "*?["):
        return patterns
    return [shard for pattern in patterns for shard in glob_shards(pattern)]


def glob_shards(pattern: str) -> list[str]:
    """Returns the files that match wildcards, sorted."""
    if not is_remote(pattern):
        return sorted(glob.glob(str(local_path(pattern))))
    filesystem, path = resolve_filesystem(pattern)
    paths = with_retries(pattern, lambda: filesystem.glob(path))
    return [str(filesystem.unstrip_protocol(path)) for path in sorted(paths)]


def expand_braces(pattern: str) -> list[str]:
    """Expands {000..009} and {a,b} as a shell does; raises `UsageError` for other braces or too many shards."""
    addresses = list(itertools.islice(iter_braces(pattern), MAX_SHARDS + 1))
    if len(addresses) > MAX_SHARDS:
        raise UsageError(f"{pattern} expands to more than {MAX_SHARDS:,} shards", "use a shorter range")
    return addresses


def iter_braces(pattern: str) -> Iterator[str]:
    """Yields the expansions of the first braces, and recursively of what is in them and what follows."""
    start = pattern.find("{")
    if start < 0:
        yield pattern
        return
    end, commas = find_closing_brace(pattern, start)
    inside = pattern[start + 1 : end]
    if number_range := NUMBER_RANGE.fullmatch(inside):
        choices: Iterable[str] = iter_numbers(*number_range.groups())
    elif commas:
        choices = [pattern[a + 1 : b] for a, b in pairwise([start, *commas, end])]
    else:
        raise UsageError(f"{pattern}: {{{inside}}} is neither a range nor a list", "write {000..009} or {a,b}")
    for choice in choices:
        for expanded_choice in iter_braces(choice):
            for rest in iter_braces(pattern[end + 1 :]):
                yield pattern[:start] + expanded_choice + rest


def find_closing_brace(pattern: str, start: int) -> tuple[int, list[int]]:
    """Returns the index of the brace that closes the one at `start`, and of the commas directly between them."""
    depth, commas = 0, []
    for i in range(start, len(pattern)):
        depth += (pattern[i] == "{") - (pattern[i] == "}")
        if pattern[i] == "," and depth == 1:
            commas.append(i)
        if depth == 0:
            return i, commas
    raise UsageError(f"{pattern}: a brace is not closed", "write {000..009} or {a,b}")


def iter_numbers(first: str, last: str) -> Iterator[str]:
    """Counts up or down from one number to another; a leading zero in either pads all to the same width."""
    start, stop = int(first), int(last)
    step = 1 if start <= stop else -1
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    return (f"{number:0{width}d}" for number in range(start, stop + step, step))


def parent_folder(address: str) -> str:
    """Returns the folder of a shard."""
    return address.rpartition("/")[0] if is_remote(address) else str(local_path(address).parent)


def join_address(folder: str, file: str) -> str:
    """Returns the address of a file in a folder."""
    return f"{folder.rstrip('/')}/{file}" if is_remote(folder) else str(local_path(folder) / file)
