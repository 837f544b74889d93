"""What is to be predicted, as a file with a line per image: never in memory as a whole.

Folders come in the order of their paths, whatever the order on disk, so that parts are the same on every machine.
"""

import csv
import hashlib
import heapq
import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from vitrail.data.decode import EXTENSIONS, PASSING
from vitrail.data.shards import is_shards
from vitrail.data.table import PATH_COLUMNS, TABLES, column
from vitrail.errors import UsageError, VitrailError
from vitrail.prediction.arrow import import_pyarrow
from vitrail.prediction.shard_members import ShardMember, list_shard_members

RUN = 50_000  # entries that are sorted in memory
RUNS = 64  # sorted files that are merged into one
Item = TypeVar("Item")


class Entry(NamedTuple):
    """An image by its path; size in bytes and time of change are -1 where there is no such file.

    One in a tar shard is called SHARD:NAME, and `member` says where it lies.
    """

    path: str
    size: int
    changed: int
    member: ShardMember | None = None

    def line(self) -> str:
        """The entry as a line of a listing."""
        return json.dumps(self if self.member else self[:3]) + "\n"

    @classmethod
    def of_line(cls, line: str | bytes) -> Self:
        """What `line` wrote."""
        path, size, changed, *more = json.loads(line)
        return cls(path, size, changed, ShardMember(*more[0]) if more else None)


@dataclass(frozen=True)
class Part:
    """A part of the work: so many images, and where their lines stand in the listing."""

    number: int
    images: int
    start: int
    end: int


@dataclass(frozen=True)
class ListingFile:
    """A file with a line per image; `marks` are where its lines number 0, MARK, 2 MARK, ... begin, and its end."""

    file: Path
    images: int
    fingerprint: str  # SHA-256 of the lines: paths, sizes, times
    offsets: "array[int]"

    def parts(self, size: int) -> list[Part]:
        """The parts of `size` images, which is a multiple of MARK; the last may be smaller."""
        step = size // LISTING_STRIDE
        starts = [*self.offsets[:-1:step], self.offsets[-1]]
        return [
            Part(number, min(size, self.images - number * size), start, end)
            for number, (start, end) in enumerate(pairwise(starts))
        ]


LISTING_STRIDE = 64  # images between two places that are remembered; parts are a multiple of it


def write_listing(sources: Sequence[str], file: Path, tick: Callable[[int], object] = lambda n: None) -> ListingFile:
    """Lists the sources into a file; `tick` is told now and then how many images there are.

    Raises `UsageError` for a folder without images, `VitrailError` for what cannot be listed.
    """
    sha, marks, images, at = hashlib.sha256(), array("q"), 0, 0
    try:
        with file.open("wb") as lines:
            for source in sources:
                before = images
                for entry in list_source(source, file.parent):
                    line = entry.line().encode()
                    if images % LISTING_STRIDE == 0:
                        marks.append(at)
                    lines.write(line)
                    sha.update(line)
                    at, images = at + len(line), images + 1
                    if images % 10_000 == 0:
                        tick(images)
                if images == before:
                    raise UsageError(f"{source} has no images")
    except OSError as error:  # what cannot be read is an error of another kind by now
        raise VitrailError(
            f"{file.parent} cannot be written: {error.strerror}", "make room, or choose another"
        ) from None
    marks.append(at)
    return ListingFile(file, images, sha.hexdigest(), marks)


def read_entries(file: Path, piece: Part) -> list[Entry]:
    """The entries of a part; raises `VitrailError` where the listing is not what it was."""
    try:
        with file.open("rb") as lines:
            lines.seek(piece.start)
            found = [Entry.of_line(line) for line in lines.read(piece.end - piece.start).splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise VitrailError(f"{file} cannot be read: {error}", "start again with --resume") from None
    if len(found) != piece.images:
        raise VitrailError(f"{file} is not whole", "start again with --resume")
    return found


def list_source(source: str, aside: Path) -> Iterator[Entry]:
    """The images at a source: tar shards, a folder and all below it, a table with a column of paths, or one file."""
    path = str(Path(source))
    folder = os.path.isdir(path)
    if is_shard_source(source):  # a folder of shards is asked as a whole
        return (
            Entry(name, member.length, -1, member)
            for name, member in translate_read_errors(source, list_shard_members(source))
        )
    if folder:
        return in_order(walk_folder(path), aside)
    if os.path.splitext(path)[1].lower() in TABLES and os.path.isfile(path):
        return (stat_entry(name) for name in translate_read_errors(path, table_paths(Path(path))))
    if not os.path.lexists(path) and not is_image(os.path.basename(path)):  # a slip, not a file that has gone
        raise UsageError(f"there is no folder, table or file {path}")
    return iter([stat_entry(path)])


def is_shard_source(source: str) -> bool:
    """Whether a source is asked for what is in its tar shards; a folder with images in it is not."""
    return not (os.path.isdir(source) and holds_images(source)) and is_shards(source)  # which lists a folder in memory


def translate_read_errors(source: str, found: Iterator[Item]) -> Iterator[Item]:
    """What is found at a source; raises `VitrailError` where it cannot be read."""
    try:
        yield from found
    except OSError as error:
        raise VitrailError(f"{source} cannot be read: {error.strerror or error}") from None


def holds_images(folder: str) -> bool:
    """Whether there are images in a folder itself."""
    with suppress(OSError), os.scandir(folder) as inside:  # listing it says what is wrong
        return any(is_image(each.name) for each in inside)
    return False


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def stat_entry(path: str) -> Entry:
    """An entry with the size and time of the file that is there; raises `VitrailError` where the disk fails."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # predicting it says what is wrong
        if isinstance(error, OSError) and error.errno in PASSING:
            raise VitrailError(f"{path} cannot be read: {error.strerror}", "try again later") from None
        return Entry(path, -1, -1)
    return Entry(path, status.st_size, int(status.st_mtime))


def walk_folder(root: str) -> Iterator[Entry]:
    """All image files below a folder as they come; links are followed, each folder is entered once, none hidden.

    A folder that links lead to is called by its own path, else by the first of theirs, whatever the disk's order.
    """
    seen: set[tuple[int, int]] = set()
    folders = [root]
    linked: list[str] = []
    while folders or linked:
        if not folders:
            linked.sort(key=names, reverse=True)
            folders.append(linked.pop())
        folder = folders.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as inside:
                for each in inside:
                    path = each.name if folder == "." else os.path.join(folder, each.name)
                    if each.is_dir():
                        if not each.name.startswith((".", "__")):
                            (linked if each.is_symlink() else folders).append(path)
                    elif is_image(each.name):
                        yield stat_entry(path)
        except OSError as error:
            raise VitrailError(f"{folder} cannot be listed: {error.strerror}", "change its permissions") from None


def in_order(found: Iterator[Entry], aside: Path) -> Iterator[Entry]:
    """Entries in the order of their paths, sorted through files in `aside` where they are many."""
    run = sorted(islice(found, RUN), key=place)
    if len(run) < RUN:
        yield from run
        return
    with tempfile.TemporaryDirectory(dir=aside, prefix=".sorting-") as folder:
        runs: list[Path] = []
        while run:
            runs.append(kept(run, Path(folder, f"{len(runs)}")))
            if len(runs) == RUNS:
                merged = kept(heapq.merge(*map(read_run, runs), key=place), Path(folder, "merged"))
                runs = [merged.rename(Path(folder, "0"))]
            run = sorted(islice(found, RUN), key=place)
        yield from heapq.merge(*map(read_run, runs), key=place)


def place(entry: Entry) -> list[str]:
    """What entries are ordered by."""
    return names(entry.path)


def names(path: str) -> list[str]:
    """The names on the way to a file, as `Path` orders them."""
    return path.split("/")


def kept(run: Iterable[Entry], file: Path) -> Path:
    """A file with these entries."""
    with file.open("w", encoding="ascii") as lines:
        lines.writelines(entry.line() for entry in run)
    return file


def read_run(file: Path) -> Iterator[Entry]:
    """The entries in a file, one at a time."""
    with file.open(encoding="ascii") as lines:
        for line in lines:
            yield Entry.of_line(line)


def table_paths(file: Path) -> Iterator[str]:
    """The paths that a table lists, one at a time, relative to where the table lies."""
    rows = parquet_rows(file) if file.suffix.lower() == ".parquet" else csv_rows(file)
    name = None
    for number, row in enumerate(rows, start=1):
        name = name or column(file, row, PATH_COLUMNS)
        if not row.get(name):
            raise VitrailError(f"{file}, row {number}: the column {name!r} is empty", "fill it in or remove the row")
        yield str(file.parent / str(row[name]))


def csv_rows(file: Path) -> Iterator[dict[str, object]]:
    """The rows of a comma- or tab-separated file."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            for row in csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ","):
                yield dict(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise VitrailError(f"{file} is not a table in UTF-8 ({error})", "save it as CSV in UTF-8") from None


def parquet_rows(file: Path) -> Iterator[dict[str, object]]:
    """The rows of a parquet file, a group of them in memory at a time."""
    _, parquet = import_pyarrow()
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise VitrailError(f"{file} is not a parquet file ({error})") from None
