"""A source -> its images, one at a time: a folder, tar shards, a table of paths, or one image file.

The images of a folder come in the order of their paths, whatever the order on disk: parts are the same on any machine.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from vitrail.data.decode import TRANSIENT_ERRNOS
from vitrail.data.formats import is_hidden, is_image_file, is_image_name
from vitrail.data.shards import is_shards
from vitrail.data.table_rows import TABLE_EXTENSIONS, check_paths, find_path_columns, has_image_bytes, iter_rows
from vitrail.data.walk import Omissions
from vitrail.errors import UsageError, VitrailError
from vitrail.prediction.entry import Entry
from vitrail.prediction.external_sort import path_components, sort_entries
from vitrail.prediction.shard_members import list_shard_members

Item = TypeVar("Item")


def list_source(source: str, temporary_folder: Path, omissions: Omissions) -> Iterator[Entry]:
    """Yields the images of a source; a folder includes all folders below it. Other files are added to `omissions`.

    Raises `UsageError` if there is no such source, `VitrailError` if it cannot be read, and `OSError` if a large folder
    cannot be sorted in `temporary_folder`.
    """
    path = str(Path(source))
    if is_shard_source(source):
        members = translate_read_errors(source, list_shard_members(source))
        return (Entry(name, member.length, -1, member) for name, member in members)
    if os.path.isdir(path):
        return sort_entries(walk_folder(path, omissions), temporary_folder)
    if is_table_source(path):
        return (stat_entry(*files) for files in translate_read_errors(path, read_path_columns(Path(path))))
    if not os.path.lexists(path) and not is_image_name(os.path.basename(path)):  # else the row of the image says it
        raise UsageError(f"there is no folder, table or file {path}")
    return iter([stat_entry(path)])


def is_shard_source(source: str) -> bool:
    """Returns whether a source is read as tar shards; a folder with images in it is not."""
    return not (os.path.isdir(source) and has_images(source)) and is_shards(source)  # the latter lists a whole folder


def is_table_source(source: str) -> bool:
    """Returns whether a source is a table of paths."""
    return os.path.splitext(source)[1].lower() in TABLE_EXTENSIONS and os.path.isfile(source)


def translate_read_errors(source: str, items: Iterator[Item]) -> Iterator[Item]:
    """Yields the items of a source; an `OSError` becomes a `VitrailError` that names it."""
    try:
        yield from items
    except OSError as error:
        raise VitrailError(f"{source} cannot be read: {error.strerror or error}") from None


def has_images(folder: str) -> bool:
    """Returns whether a folder has images of its own, not only in other folders."""
    with suppress(OSError), os.scandir(folder) as entries:  # listing the folder reports the error
        return any(is_image_name(entry.name) for entry in entries)
    return False


def stat_entry(path: str, *others: str) -> Entry:
    """Returns an entry with the size and time of its file; raises `VitrailError` if the disk fails.

    `others` are the further files of an image of several: the entry has the sum of their sizes and the last time.
    """
    size, modified = 0, 0
    for file in (path, *others):
        try:
            status = os.stat(file)
        except (OSError, ValueError) as error:  # the row of the image will have the error
            if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS:
                raise VitrailError(f"{file} cannot be read: {error.strerror}", "try again later") from None
            return Entry(path, -1, -1, None, others)
        size, modified = size + status.st_size, max(modified, int(status.st_mtime))
    return Entry(path, size, modified, None, others)


def walk_folder(root: str, omissions: Omissions) -> Iterator[Entry]:
    """Yields all image files below a folder, unordered. Hidden folders are skipped, links are followed, each folder is
    entered once. Other files are added to `omissions`.

    A folder that several links lead to is named by its own path if that is below `root`, else by the first link in the
    order of paths. This does not depend on the order on disk.
    """
    visited: set[tuple[int, int]] = set()
    folders = [root]
    linked_folders: list[str] = []
    while folders or linked_folders:
        if not folders:
            linked_folders.sort(key=path_components, reverse=True)
            folders.append(linked_folders.pop())
        folder = folders.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = entry.name if folder == "." else os.path.join(folder, entry.name)
                    if is_hidden(entry.name):
                        continue
                    if entry.is_dir():
                        (linked_folders if entry.is_symlink() else folders).append(path)
                    elif is_image_file(entry.path):
                        yield stat_entry(path)
                    elif os.path.exists(path):
                        omissions.add_file(path)
                    else:
                        omissions.add_link(path)
        except OSError as error:
            raise VitrailError(f"{folder} cannot be listed: {error.strerror}", "change its permissions") from None


def read_path_columns(table: Path) -> Iterator[tuple[str, ...]]:
    """Yields the files of each image in a table, row by row; their paths are relative to its folder."""
    if table.suffix.lower() == ".parquet" and (column := has_image_bytes(table)):
        raise UsageError(
            f"{table} holds the bytes of images, in its column {column!r}, not their paths",
            f"write them as shards first: vitrail shard hf:{table} --out FOLDER",
        )
    columns: list[str] = []
    for number, row in iter_rows(table):
        columns = columns or find_path_columns(table, row)
        check_paths(row, columns, f"{table}, {number}")
        yield tuple(str(table.parent / str(row[name])) for name in columns)
