"""Default folders of runs: runs/NAME, runs/NAME-2, ... after the name of the data."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vitrail.data.shards.address import is_shards, shard_set_name

MAX_NUMBER = 10_000


def name_of_data(data: str | Path) -> str:
    """Returns a short name for DATA: that of its folder or file, of its set of shards, or of the built-in data set."""
    if is_shards(data):
        return shard_set_name(str(data)).strip() or "run"
    path = Path(data).resolve() if Path(data).exists() else Path(data)
    return path.stem.strip() or "run"


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
