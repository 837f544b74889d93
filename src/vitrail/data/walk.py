"""The image files below a folder, and the other files there."""

import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from vitrail.console import log
from vitrail.data.formats import DICOM_EXTENSIONS, UNREAD_EXTENSIONS, is_hidden, is_image_file, is_image_name
from vitrail.data.source import LeftOut
from vitrail.errors import UsageError, VitrailError
from vitrail.installation import install_hint


class Omissions:
    """The files and folders that a listing does not read: counts, and the first of each kind."""

    def __init__(self) -> None:
        self.unread_images: Counter[str] = Counter()  # by extension
        self.counts: Counter[str] = Counter()  # by kind: unread, others, links
        self.first: dict[str, Path | str] = {}  # by kind
        self.unreachable: list[str] = []  # sentences

    def add_file(self, path: Path | str) -> None:
        """Adds a file that is not hidden and whose name is not that of an image."""
        extension = os.path.splitext(path)[1].lower()
        if extension in UNREAD_EXTENSIONS:
            self.unread_images[extension] += 1
        self._count("unread" if extension in UNREAD_EXTENSIONS else "others", path)

    def add_link(self, path: Path | str) -> None:
        """Adds a link to nothing."""
        self._count("links", path)

    def add_unreachable(self, path: Path | str, error: OSError) -> None:
        """Adds a folder that cannot be listed."""
        self.unreachable.append(f"{path} cannot be listed: {error.strerror}")

    def _count(self, kind: str, path: Path | str) -> None:
        self.counts[kind] += 1
        self.first.setdefault(kind, path)

    def describe(self, root: Path | str) -> list[LeftOut]:
        """Returns a sentence for each kind of file."""
        extensions = ", ".join(f"{n} {extension}" for extension, n in sorted(self.unread_images.items()))
        has_dicom = any(extension in DICOM_EXTENSIONS for extension in self.unread_images)
        hint = f"{install_hint('dicom')} for DICOM, else " if has_dicom else ""
        texts = {
            "unread": f"{count(self.counts['unread'], 'image')} in a format that is not read ({extensions}; "
            f"{hint}convert to JPEG or PNG)",
            "others": f"{count(self.counts['others'], 'file')} not named like an image",
            "links": f"{count(self.counts['links'], 'link')} to nothing",
        }
        return [LeftOut(f"{root}: {texts[kind]}, first {self.first[kind]}", n) for kind, n in self.counts.items() if n]


def log_left_out(left_out: Iterable[LeftOut]) -> None:
    """Prints a warning for each thing that a source leaves out."""
    for each in left_out:
        log(f"warning: {each.sentence}; not used")


def no_images(source: Path | str, omissions: Omissions) -> UsageError:
    """Returns the error for a source without images, which says what it has instead."""
    sentences = [each.sentence.removeprefix(f"{source}: ") for each in omissions.describe(source)]
    return UsageError(f"{source} has no images" + (f", but {'; '.join(sentences)}" if sentences else ""))


def count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def list_entries(folder: Path | str, omissions: Omissions) -> tuple[list[Path], list[Path]]:
    """Returns the folders and the files in a folder, sorted by name, without hidden ones. Links are followed.

    A link to nothing is a file if it is named like an image: the image then cannot be read. Raises `VitrailError` for a
    name that is not UTF-8.
    """
    folders: list[Path] = []
    files: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                check_utf8_name(folder, entry.name)
                path = Path(folder, entry.name)
                if is_folder(entry, omissions):
                    folders.append(path)
                elif is_image_name(entry.name) or os.path.exists(path):
                    files.append(path)
                else:
                    omissions.add_link(path)
    except OSError as error:
        omissions.add_unreachable(folder, error)
    return sorted(folders), sorted(files)


def is_folder(entry: os.DirEntry[str], omissions: Omissions) -> bool:
    """Returns whether an entry is a folder; one behind a link that may not be followed is added to `omissions`."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP and not is_image_name(entry.name):
            omissions.add_unreachable(entry.path, error)
        return False


def walk_images(folder: Path | str, omissions: Omissions) -> list[Path]:
    """Returns all image files below a folder, sorted; the other files are added to `omissions`."""
    images: list[Path] = []
    for path in walk_files(folder, omissions):
        if is_image_file(path):
            images.append(path)
        else:
            omissions.add_file(path)
    return sorted(images)


def walk_files(folder: Path | str, omissions: Omissions) -> Iterator[Path]:
    """Yields all files below a folder that are not hidden.

    Links to folders are followed; a folder that is reached twice is listed once.
    """
    visited: set[str] = set()
    waiting = [Path(folder)]
    while waiting:
        current = waiting.pop()
        if (real := os.path.realpath(current)) in visited:
            continue
        visited.add(real)
        folders, files = list_entries(current, omissions)
        waiting += reversed(folders)
        yield from files


def check_utf8_name(parent: str | Path, name: str) -> None:
    """Raises `VitrailError` for a file name that is not UTF-8: it could be neither printed nor stored."""
    try:
        name.encode()
    except UnicodeEncodeError:
        printable = name.encode(errors="surrogateescape").decode(errors="replace")
        raise VitrailError(f"{parent}: the name {printable!r} is not UTF-8", "rename it") from None
