"""Sorts entries by path in bounded memory: sorted runs in files, merged."""

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from vitrail.prediction.entry import Entry

RUN_LENGTH = 50_000  # entries that are sorted in memory
MAX_RUNS = 64  # files that are merged into one


def sort_entries(entries: Iterator[Entry], folder: Path) -> Iterator[Entry]:
    """Yields the entries in the order of their paths; more than `RUN_LENGTH` pass through temporary files in `folder`.

    Raises `OSError` if these cannot be written.
    """
    run = sorted(islice(entries, RUN_LENGTH), key=sort_key)
    if len(run) < RUN_LENGTH:
        yield from run
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".sorting-") as temporary:
        runs: list[Path] = []
        while run:
            runs.append(write_run(run, Path(temporary, f"{len(runs)}")))
            if len(runs) == MAX_RUNS:
                merged = write_run(merge_runs(runs), Path(temporary, "merged"))
                runs = [merged.rename(Path(temporary, "0"))]
            run = sorted(islice(entries, RUN_LENGTH), key=sort_key)
        yield from merge_runs(runs)


def sort_key(entry: Entry) -> list[str]:
    return path_components(entry.path)


def path_components(path: str) -> list[str]:
    """Returns the names in a path, by which `Path` orders."""
    return path.split("/")


def merge_runs(runs: Iterable[Path]) -> Iterator[Entry]:
    return heapq.merge(*map(read_run, runs), key=sort_key)


def write_run(entries: Iterable[Entry], file: Path) -> Path:
    with file.open("w", encoding="ascii") as lines:
        lines.writelines(entry.to_line() for entry in entries)
    return file


def read_run(file: Path) -> Iterator[Entry]:
    with file.open(encoding="ascii") as lines:
        for line in lines:
            yield Entry.from_line(line)
