"""The images to predict as a file with one line per image, cut into parts; it is never in memory as a whole."""

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from vitrail.data.walk import Omissions, log_left_out, no_images
from vitrail.errors import VitrailError
from vitrail.prediction.entry import Entry
from vitrail.prediction.sources import list_source

LISTING_STRIDE = 64  # images between two remembered offsets; the size of a part is a multiple of it
PROGRESS_STRIDE = 10_000  # images between two reports of progress


@dataclass(frozen=True)
class Part:
    """Consecutive images of a listing: its lines from byte `start` to byte `end`."""

    number: int
    images: int
    start: int
    end: int


@dataclass(frozen=True)
class ListingFile:
    """A listing on disk."""

    file: Path
    images: int
    fingerprint: str  # SHA-256 of the lines: paths, sizes, times
    offsets: "array[int]"  # bytes at which the lines 0, LISTING_STRIDE, 2 LISTING_STRIDE, ... start, and the end

    def parts(self, size: int) -> list[Part]:
        """Cuts the listing into parts of `size` images, a multiple of `LISTING_STRIDE`; the last may be smaller."""
        step = size // LISTING_STRIDE
        starts = [*self.offsets[:-1:step], self.offsets[-1]]
        return [
            Part(number, min(size, self.images - number * size), start, end)
            for number, (start, end) in enumerate(pairwise(starts))
        ]


def write_listing(
    sources: Sequence[str], file: Path, on_progress: Callable[[int], object] = lambda images: None
) -> ListingFile:
    """Lists the sources into a file; calls `on_progress` now and then with the number of images so far.

    Raises `UsageError` for a source without images, `VitrailError` for one that cannot be listed.
    """
    sha, offsets, images, offset = hashlib.sha256(), array("q"), 0, 0
    try:
        with file.open("wb") as lines:
            for source in sources:
                images_before, omissions = images, Omissions()
                for entry in list_source(source, file.parent, omissions):
                    line = entry.to_line().encode()
                    if images % LISTING_STRIDE == 0:
                        offsets.append(offset)
                    lines.write(line)
                    sha.update(line)
                    offset, images = offset + len(line), images + 1
                    if images % PROGRESS_STRIDE == 0:
                        on_progress(images)
                if images == images_before:
                    raise no_images(source, omissions)
                log_left_out(omissions.describe(source))
    except OSError as error:  # errors of reading a source are `VitrailError`s by now
        raise VitrailError(
            f"{file.parent} cannot be written: {error.strerror}", "free some space, or choose another folder"
        ) from None
    offsets.append(offset)
    return ListingFile(file, images, sha.hexdigest(), offsets)


def read_entries(file: Path, part: Part) -> list[Entry]:
    """Returns the entries of a part; raises `VitrailError` if the listing is damaged."""
    try:
        with file.open("rb") as lines:
            lines.seek(part.start)
            entries = [Entry.from_line(line) for line in lines.read(part.end - part.start).splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise VitrailError(f"{file} cannot be read: {error}", "start again with --resume") from None
    if len(entries) != part.images:
        raise VitrailError(f"{file} is incomplete", "start again with --resume")
    return entries
