"""Facts about single images, cached by location, size and modification time, so that a second check reads nothing."""

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrail.data.bands import IMAGE_CHANNELS, Bands
from vitrail.data.decode import ImageError, ImageHeader, decode_with_header
from vitrail.data.encoded import EncodedImages
from vitrail.data.geometry import resize
from vitrail.data.near_duplicates import MAX_PAIRS, IndexPair, compute_signature, near_duplicate_pairs
from vitrail.data.source import Listing
from vitrail.files import cache_folder

CACHE_NAME = "image-facts-3.sqlite"  # the number changes with the decoder and with the meaning of a column
OLD_CACHE_NAME = "image-facts-2.sqlite"
UNCHANGED_FORMATS = ("JPEG", "WEBP", "GIF", "BMP")  # whose images are decoded as when the old cache was written
UNUSED_DAYS = 90  # an entry that was not read for so long is deleted
SIGNATURE_INPUT_SIZE = 64  # larger images are reduced to this before the signature is computed
WRITE_EVERY = 1000  # new entries
N_COLUMNS = 14


@dataclass(frozen=True)
class ImageFacts:
    """What a check needs to know about an image."""

    sha256: bytes  # of the file, or of the pixels if there is no file
    height: int  # upright
    width: int
    format: str
    color_type: str
    is_transparent: bool
    is_rotated: bool
    is_animated: bool
    is_constant: bool  # of a single color
    signature: bytes | None  # for near-duplicates


@dataclass(frozen=True)
class CacheEntry:
    """The facts of an image with their key in the cache, or the error that reading it raised."""

    key: str
    size: int
    time_ns: int
    facts: ImageFacts | ImageError
    is_new: bool


def read_file_facts(images: EncodedImages, i: int) -> ImageFacts:
    """Reads and decodes an encoded image; raises `ImageError`."""
    channels = images.channels if isinstance(images.channels, Bands) else 3
    return compute_facts(
        *decode_with_header(images.decoder_input(i), channels, images.location(i)),
        sha256=images.sha256(np.array([i]))[0].tobytes(),
    )


def compute_facts(pixels: Tensor, header: ImageHeader | None = None, *, sha256: bytes) -> ImageFacts:
    """Returns the facts of decoded pixels (C, h, w), and of the header of their file if they have one."""
    height, width = pixels.shape[-2:]
    if header is None:
        header = ImageHeader("", describe_color(pixels), False, False, False)
    flags = (header.is_transparent, header.is_rotated, header.is_animated)
    return ImageFacts(sha256, height, width, header.format, header.color_type, *flags, *pixel_facts(pixels))


def pixel_facts(pixels: Tensor) -> tuple[bool, bytes | None]:
    """Returns whether an image is of a single color, and its signature."""
    flat = pixels.flatten(1)
    is_constant = bool((flat.amin(1) == flat.amax(1)).all())
    if min(pixels.shape[-2:]) > SIGNATURE_INPUT_SIZE:
        pixels = resize(pixels, SIGNATURE_INPUT_SIZE, SIGNATURE_INPUT_SIZE)
    signature = None if is_constant else compute_signature(pixels)
    return is_constant, None if signature is None else signature.tobytes()


def describe_color(pixels: Tensor) -> str:
    """Returns the color type of decoded pixels."""
    if pixels.dtype != torch.uint8 or len(pixels) not in IMAGE_CHANNELS:
        return str(Bands(len(pixels), "uint8" if pixels.dtype == torch.uint8 else "float32"))
    return "gray" if len(pixels) == 1 else "color"


def open_database() -> sqlite3.Connection | None:
    """Opens the cache, created anew if it is damaged; returns None if it cannot be written."""
    path = cache_folder() / CACHE_NAME
    for _ in range(2):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as on_error:
                connection = sqlite3.connect(path, timeout=10, check_same_thread=False)
                on_error.callback(connection.close)
                with connection:
                    create_tables(connection)
                import_old_cache(connection, path.with_name(OLD_CACHE_NAME))
                on_error.pop_all()
            return connection
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, read-only, or no space left
                return None
            with contextlib.suppress(OSError):
                path.unlink()
        except OSError:
            return None
    return None


def create_tables(connection: sqlite3.Connection) -> None:
    """Creates missing tables and deletes entries that were not used for long."""
    connection.execute(
        "CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, size INT, time_ns INT, day INT, sha256 BLOB, "
        "height INT, width INT, format TEXT, color_type TEXT, is_transparent INT, is_rotated INT, is_animated INT, "
        "is_constant INT, signature BLOB)"
    )
    connection.execute("CREATE TABLE IF NOT EXISTS pairs (key BLOB PRIMARY KEY, day INT, pairs TEXT)")
    for table in ("facts", "pairs"):
        connection.execute(f"DELETE FROM {table} WHERE day < ?", (today() - UNUSED_DAYS,))


def import_old_cache(connection: sqlite3.Connection, path: Path) -> None:
    """Moves entries that are still valid from the cache of an earlier version, and deletes that cache."""
    if not path.exists():
        return
    with contextlib.suppress(sqlite3.DatabaseError, OSError):
        connection.execute("ATTACH ? AS old", (str(path),))
        try:
            with connection:
                formats = ", ".join("?" * len(UNCHANGED_FORMATS))
                rows = f"SELECT * FROM old.facts WHERE format IN ({formats})"
                connection.execute(f"INSERT OR IGNORE INTO facts {rows}", UNCHANGED_FORMATS)
                connection.execute("INSERT OR IGNORE INTO pairs SELECT * FROM old.pairs")
        finally:
            connection.execute("DETACH old")
    with contextlib.suppress(OSError):
        path.unlink()


def today() -> int:
    return int(time.time() // 86400)


class FactsCache:
    """Facts of earlier checks, in a database in the user's cache folder; without a working one nothing is cached."""

    def __init__(self, fresh: bool = False):
        self.connection = None if fresh else open_database()
        # Threads that read through one connection share its prepared statements: without a lock, a row can have NULL in
        # columns that another thread has just reset.
        self.lock = threading.Lock()

    def close(self) -> None:
        """Closes the database; nothing is cached from now on."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def read_listing(
        self, listing: Listing, listing_name: str, tick: Callable[[], object]
    ) -> list[ImageFacts | ImageError]:
        """Returns facts or an error for each image of a listing; unchanged images are not read again.

        `listing_name` identifies images without files. `tick` is called for each image.
        """

        def read(i: int) -> CacheEntry:
            if not isinstance(listing.pixels, EncodedImages):
                return self.read_decoded(listing, i, listing_name)
            return self.read_encoded(listing.pixels, i)

        facts: list[ImageFacts | ImageError] = []
        new: list[CacheEntry] = []
        with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
            for entry in pool.map(read, range(len(listing))):
                facts.append(entry.facts)
                if entry.is_new and isinstance(entry.facts, ImageFacts):
                    new.append(entry)
                    if len(new) >= WRITE_EVERY:
                        self.write(new)
                        new.clear()
                tick()
        self.write(new)
        return facts

    def read_encoded(self, images: EncodedImages, i: int) -> CacheEntry:
        try:
            key, size, time_ns = images.cache_key(i)
            key += f" as {images.channels}" if isinstance(images.channels, Bands) else ""
            cached = self.find(key, size, time_ns)
            return CacheEntry(key, size, time_ns, cached or read_file_facts(images, i), is_new=cached is None)
        except ImageError as error:  # not cached: the disk may be the cause
            return CacheEntry(images.location(i), 0, 0, error, is_new=True)

    def read_decoded(self, listing: Listing, i: int, listing_name: str) -> CacheEntry:
        """Reads an image that has no file; the key contains a digest of its pixels in place of the time."""
        try:
            pixels = listing.pixels[i]
            sha256 = hashlib.sha256(pixels.numpy().tobytes()).digest()
            key, size, stamp = f"{listing_name}:{listing.names[i]}", pixels.numel(), int.from_bytes(sha256[:7], "big")
            cached = self.find(key, size, stamp)
            return CacheEntry(key, size, stamp, cached or compute_facts(pixels, sha256=sha256), is_new=cached is None)
        except ImageError as error:
            return CacheEntry(listing.names[i], 0, 0, error, is_new=True)

    def find(self, key: str, size: int, time_ns: int) -> ImageFacts | None:
        """Returns the cached facts if the image has not changed since."""
        if self.connection is None:
            return None
        try:
            with self.lock:
                row = self.connection.execute(
                    "SELECT * FROM facts WHERE key = ? AND size = ? AND time_ns = ?", (key, size, time_ns)
                ).fetchone()
            if row is None:
                return None
            sha256, height, width, file_format, color_type, transparent, rotated, animated, constant, signature = row[
                4:
            ]
            flags = (bool(transparent), bool(rotated), bool(animated), bool(constant))
            return ImageFacts(sha256, height, width, file_format, color_type, *flags, signature)
        except (sqlite3.Error, ValueError):
            return None

    def write(self, entries: list[CacheEntry]) -> None:
        if self.connection is None:
            return
        rows = [
            (e.key, e.size, e.time_ns, today(), *astuple(e.facts)) for e in entries if isinstance(e.facts, ImageFacts)
        ]
        try:
            with self.lock, self.connection:
                self.connection.executemany(f"INSERT OR REPLACE INTO facts VALUES ({', '.join('?' * N_COLUMNS)})", rows)
        except sqlite3.Error:
            self.close()

    def near_duplicate_pairs(self, signatures: list[bytes], groups: list[str]) -> list[IndexPair]:
        """Returns `near_duplicate_pairs` of these signatures, cached."""
        if not signatures:
            return []
        key = hashlib.sha256(b"".join(signatures) + json.dumps([MAX_PAIRS, groups]).encode()).digest()
        if self.connection is not None:
            with contextlib.suppress(sqlite3.Error, ValueError):
                row = self.connection.execute("SELECT pairs FROM pairs WHERE key = ?", (key,)).fetchone()
                if row:
                    return [(int(i), int(j), float(similarity)) for i, j, similarity in json.loads(row[0])]
        array = np.frombuffer(b"".join(signatures), dtype=np.int8).reshape(len(signatures), -1)
        pairs = near_duplicate_pairs(array, groups)
        if self.connection is not None:
            with contextlib.suppress(sqlite3.Error), self.connection:
                values = (key, today(), json.dumps(pairs))
                self.connection.execute("INSERT OR REPLACE INTO pairs VALUES (?, ?, ?)", values)
        return pairs
