"""A look at single images: what each is, kept from one check to the next by path, size and time of change."""

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass

import numpy as np
import torchvision.transforms.v2.functional as F
from torch import Tensor

from vitrail.data.decode import ImageError, decode_with_header
from vitrail.data.encoded import EncodedImages
from vitrail.data.near_duplicates import MAX_PAIRS, compute_signature, near_duplicate_pairs
from vitrail.data.source import Listing
from vitrail.files import cache_folder

VERSION = 1  # of what a look holds: older ones are looked at again
FORGET = 90  # days after which a look that nobody asked for goes
SMALL = 64  # sides that a large image is reduced to before its fine structure is taken


@dataclass(frozen=True)
class ImageFacts:
    """What one image is, as far as a check needs to know."""

    digest: bytes  # SHA-256 of the file, or of the pixels where there is no file
    height: int  # upright
    width: int
    format: str
    color_type: str
    is_transparent: bool
    is_rotated: bool
    is_animated: bool
    is_constant: bool  # one colour all over
    signature: bytes | None  # of the fine structure


FactsOrError = ImageFacts | ImageError


def read_file_facts(images: EncodedImages, i: int) -> ImageFacts:
    """Reads and decodes one file; raises `ImageError`."""
    pixels, header = decode_with_header(images.decoder_input(i), name=images.location(i))
    digest = images.sha256(np.array([i]))[0].tobytes()
    height, width = pixels.shape[-2:]
    facts = (header.format, header.color_type, header.is_transparent, header.is_rotated, header.is_animated)
    return ImageFacts(digest, height, width, *facts, *about(pixels))


def compute_pixel_facts(pixels: Tensor, digest: bytes) -> ImageFacts:
    """The same of pixels that lie in no file."""
    height, width = pixels.shape[-2:]
    return ImageFacts(
        digest, height, width, "", "grey" if len(pixels) == 1 else "colour", False, False, False, *about(pixels)
    )


def about(pixels: Tensor) -> tuple[bool, bytes | None]:
    """Whether an image is of one colour, and its signature."""
    flat = pixels.flatten(1)
    constant = bool((flat.amin(1) == flat.amax(1)).all())
    if min(pixels.shape[-2:]) > SMALL:
        pixels = F.resize(pixels, [SMALL, SMALL], antialias=True)
    found = None if constant else compute_signature(pixels)
    return constant, None if found is None else found.tobytes()


def open_database() -> sqlite3.Connection | None:
    """The database of looks, made anew where it is damaged; None where it cannot be written."""
    path = cache_folder() / f"looks-{VERSION}.sqlite"
    for _ in range(2):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = sqlite3.connect(path, timeout=10, check_same_thread=False)
            with kept:
                kept.execute(
                    "CREATE TABLE IF NOT EXISTS looks (key TEXT PRIMARY KEY, size INT, time_ns INT, day INT, "
                    "digest BLOB, height INT, width INT, form TEXT, kind TEXT, transparent INT, turned INT, "
                    "animated INT, constant INT, signature BLOB)"
                )
                kept.execute("CREATE TABLE IF NOT EXISTS pairs (key BLOB PRIMARY KEY, day INT, pairs TEXT)")
                for table in ("looks", "pairs"):
                    kept.execute(f"DELETE FROM {table} WHERE day < ?", (int(time.time() // 86400) - FORGET,))
            return kept
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, read-only, full
                return None
            with contextlib.suppress(OSError):
                path.unlink()
        except OSError:
            return None
    return None


class FactsCache:
    """The looks of earlier checks, in a database of the user's cache; without one that works, nothing is kept."""

    def __init__(self, fresh: bool = False):
        self.kept = None if fresh else open_database()

    def of(self, listing: Listing, where: str, tick: Callable[[], object]) -> list[FactsOrError]:
        """A look, or the error, for each image of a listing; what has not changed is not read again."""
        with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
            one = self.file if isinstance(listing.pixels, EncodedImages) else self.pixels
            keys = [(listing, i, where) for i in range(len(listing))]
            found: list[FactsOrError] = []
            changed: list[tuple[str, int, int, ImageFacts]] = []
            for key, size, time_ns, seen, new in pool.map(one, keys):
                found.append(seen)
                if new and isinstance(seen, ImageFacts):
                    changed.append((key, size, time_ns, seen))
                    if len(changed) >= 1000:
                        self.keep(changed)
                tick()
            self.keep(changed)
        return found

    def file(self, key: tuple[Listing, int, str]) -> tuple[str, int, int, FactsOrError, bool]:
        """(key, size, time, look, whether it is new) of a file."""
        images, i = key[0].pixels, key[1]
        assert isinstance(images, EncodedImages)
        try:
            name, size, time_ns = images.cache_key(i)
            kept = self.find(name, size, time_ns)
            return name, size, time_ns, kept or read_file_facts(images, i), kept is None
        except ImageError as error:  # never kept: the disk may have been at fault
            return images.location(i), 0, 0, error, True

    def pixels(self, key: tuple[Listing, int, str]) -> tuple[str, int, int, FactsOrError, bool]:
        """The same of pixels, known again by what they are."""
        listing, i, where = key
        try:
            pixels = listing.pixels[i]
            digest = hashlib.sha256(pixels.numpy().tobytes()).digest()
            name, stamp = f"{where}:{listing.names[i]}", int.from_bytes(digest[:7], "big")
            kept = self.find(name, pixels.numel(), stamp)
            return name, pixels.numel(), stamp, kept or compute_pixel_facts(pixels, digest), kept is None
        except ImageError as error:
            return listing.names[i], 0, 0, error, True

    def find(self, key: str, size: int, time_ns: int) -> ImageFacts | None:
        """The look that was kept, if the image has not changed since."""
        if self.kept is None:
            return None
        try:
            row = self.kept.execute(
                "SELECT * FROM looks WHERE key = ? AND size = ? AND time_ns = ?", (key, size, time_ns)
            ).fetchone()
            if row is None:
                return None
            digest, height, width, form, kind, transparent, turned, animated, constant, signature = row[4:]
            flags = (bool(transparent), bool(turned), bool(animated), bool(constant))
            return ImageFacts(digest, height, width, form, kind, *flags, signature)
        except (sqlite3.Error, ValueError):
            return None

    def keep(self, changed: list[tuple[str, int, int, ImageFacts]]) -> None:
        """Writes new looks and empties the list."""
        today = int(time.time() // 86400)
        if self.kept is not None:
            try:
                with self.kept:
                    self.kept.executemany(
                        f"INSERT OR REPLACE INTO looks VALUES ({', '.join('?' * 14)})",
                        [(key, size, time_ns, today, *astuple(look)) for key, size, time_ns, look in changed],
                    )
            except sqlite3.Error:
                self.kept = None
        changed.clear()

    def pairs(self, signatures: list[bytes], kinds: list[str]) -> list[tuple[int, int, float]]:
        """`near_duplicates` of these signatures, remembered."""
        if not signatures:
            return []
        key = hashlib.sha256(b"".join(signatures) + json.dumps([MAX_PAIRS, kinds]).encode()).digest()
        if self.kept is not None:
            with contextlib.suppress(sqlite3.Error, ValueError):
                row = self.kept.execute("SELECT pairs FROM pairs WHERE key = ?", (key,)).fetchone()
                if row:
                    return [(int(i), int(j), float(likeness)) for i, j, likeness in json.loads(row[0])]
        stack = np.frombuffer(b"".join(signatures), dtype=np.int8).reshape(len(signatures), -1)
        found = near_duplicate_pairs(stack, kinds)
        if self.kept is not None:
            with contextlib.suppress(sqlite3.Error), self.kept:
                day = int(time.time() // 86400)
                self.kept.execute("INSERT OR REPLACE INTO pairs VALUES (?, ?, ?)", (key, day, json.dumps(found)))
        return found
