"""Default folders of runs: runs/NAME, runs/NAME-2, ... after the name of the data."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

MAX_NUMBER = 10_000


def numbered_folders(parent: str, name: str) -> Iterator[Path]:
    """PARENT/NAME, PARENT/NAME-2, PARENT/NAME-3, ..."""
    yield Path(parent, name)
    yield from (Path(parent, f"{name}-{number}") for number in range(2, MAX_NUMBER))


def newest_folder(folders: Iterable[Path], is_begun: Callable[[Path], bool]) -> Path:
    """Returns the last of consecutive existing folders for which `is_begun` is true; the first folder if none is."""
    first, *rest = folders
    newest = first
    for folder in rest:
        if not folder.exists():
            break
        if is_begun(folder):
            newest = folder
    return newest
