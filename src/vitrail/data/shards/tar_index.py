"""A tar file -> the index of its images, for shards that come without one.

The WebDataset layout: members whose names are the same up to the first dot of the last part are one sample. Nothing is
ever unpacked, so what a member is called can do no harm; what is no plain file is listed with the reason.
"""

import hashlib
import json
import tarfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from vitrail.data.decode import EXTENSIONS
from vitrail.data.shards.index import (
    CUT,
    HOLES,
    LEADS_OUT,
    LINK,
    MAX_IMAGE_BYTES,
    NOT_UTF8,
    SPLITS,
    TOO_LARGE,
    ShardIndex,
    empty_columns,
)
from vitrail.data.shards.storage import Shard, StorageUnreachable, open_shard
from vitrail.data.source import SPLIT_NAMES
from vitrail.data.strings import StringArray
from vitrail.data.table import LABEL_COLUMNS
from vitrail.errors import VitrailError

SMALL = 1 << 20  # bytes of a label or of a header that are read
PIECE = 1 << 20
LABELS = ("json", "cls", "label")  # the members that may say a class, the first that does counts
BLOCK = 512  # of a tar file


@dataclass
class Sample:
    """What lies under one key."""

    key: str
    image: tarfile.TarInfo | None = None
    sha256: bytes = b""
    fault: int = 0
    said: dict[str, bytes] = field(default_factory=dict)


class _Guarded:
    """A file that does not give more at once than a header or a piece may have: a tar header may lie about its size."""

    def __init__(self, file: BinaryIO, size: int):
        self.file = file
        self.size = size
        self.tell = file.tell

    def seek(self, place: int) -> int:
        return self.file.seek(min(place, self.size))

    def read(self, n: int = -1) -> bytes:
        if not 0 <= n <= SMALL:
            raise tarfile.ReadError(f"a header of {n:,} bytes")
        return self.file.read(n)


def index_tar(shard: Shard) -> ShardIndex:
    """The index of a shard, by reading all of it once; a tear in it is in `lost`, images before it are listed.

    Raises `VitrailError` where nothing in it is a tar file.
    """
    columns, names, labels = [], [], []
    notes: list[str] = []
    lost: list[str] = []
    without_image = 0
    split = SPLITS.index(split_of(shard.address))
    try:
        with open_shard(shard) as file:
            for sample in samples(shard, file, lost):
                if sample.image is None:
                    without_image += 1
                    continue
                label = label_of(sample)
                if label is None:
                    lost.append(f"{shard.address}: {shown(sample.image.name)} has no label ({', '.join(LABELS)})")
                    continue
                columns.append((sample.image.offset_data, sample.image.size, split, sample.fault, sample.sha256))
                names.append(f"{PurePosixPath(shard.address).stem}/{shown(sample.image.name)}")
                labels.append(label)
    except OSError as error:
        reason = str(error) if isinstance(error, StorageUnreachable) else error.strerror or str(error)
        lost.append(f"{shard.address} cannot be read: {reason}")
    if without_image:
        notes.append(f"{shard.address}: {without_image} samples without an image are left out")
    classes = tuple(sorted(set(labels)))
    code = {label: number for number, label in enumerate(classes)}
    arrays = empty_columns(len(columns))
    for i, (offset, length, part, fault, sha256) in enumerate(columns):
        row = {"offset": offset, "length": length, "split": part, "fault": fault, "label": code[labels[i]]}
        for column, value in row.items():
            arrays[column][i] = value
        arrays["sha256"][i] = np.frombuffer(sha256.ljust(32, b"\0"), dtype=np.uint8)
    return ShardIndex(
        shard.address, (shard,), classes, arrays, StringArray.from_strings(names), notes=tuple(notes), lost=tuple(lost)
    )


def samples(shard: Shard, file: BinaryIO, lost: list[str]) -> Iterator[Sample]:
    """The samples of a shard in order; what ends them early is added to `lost`."""
    sample: Sample | None = None
    seen = 0
    try:
        with tarfile.open(fileobj=_Guarded(file, shard.size), mode="r:", errors="surrogateescape") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members = []  # else it remembers all of them
                key, _, extension = split_key(member.name)
                if member.isdir() or not extension or key.rpartition("/")[2].startswith("__"):
                    continue
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield sample
                    sample = Sample(key)
                seen += 1
                take_in(sample, member, extension.lower(), file, shard.size)
            end = tar.offset
        file.seek(end)
        rest = file.read(BLOCK)
        if rest.count(0) != BLOCK:
            what = "what follows is damaged" if rest else "it ends without an end mark, so it may be cut short"
            lost.append(f"{shard.address}: after {seen} members {what}")
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        if not seen:
            packed = compressed(file)
            raise VitrailError(
                f"{shard.address} is {packed or 'no tar file'}" + ("" if packed else f" ({error})"),
                "unpack it once: images of a compressed tar file cannot be found by their place" if packed else None,
            ) from None
        lost.append(f"{shard.address}: after {seen} members what follows is damaged or cut short ({error})")
    if sample is not None:
        yield sample


def take_in(sample: Sample, member: tarfile.TarInfo, extension: str, file: BinaryIO, size: int) -> None:
    """Adds a member to its sample: an image, or what may say its label."""
    kind = extension.rpartition(".")[2]
    if "." + kind in EXTENSIONS and sample.image is None:
        sample.image = member
        sample.fault = fault_of(member, size)
        if not sample.fault:
            sha = hashlib.sha256()
            for piece in pieces(file, member):
                sha.update(piece)
            sample.sha256 = sha.digest()
    elif extension in LABELS and member.isreg() and member.size <= SMALL and not fault_of(member, size):
        sample.said[extension] = b"".join(pieces(file, member))


def pieces(file: BinaryIO, member: tarfile.TarInfo) -> Iterator[bytes]:
    """The bytes of a member."""
    file.seek(member.offset_data)
    left = member.size
    while left > 0 and (piece := file.read(min(PIECE, left))):
        left -= len(piece)
        yield piece


def fault_of(member: tarfile.TarInfo, size: int) -> int:
    """Why a member will not be read as an image, as a number in FAULTS; 0 where it will."""
    path = PurePosixPath(member.name)
    if not member.name.isprintable() and shown(member.name) != member.name:
        return NOT_UTF8
    if path.is_absolute() or ".." in path.parts:
        return LEADS_OUT
    if member.issparse():
        return HOLES
    if not member.isreg():
        return LINK
    if member.offset_data + member.size > size:
        return CUT
    return TOO_LARGE if member.size > MAX_IMAGE_BYTES else 0


def split_key(name: str) -> tuple[str, str, str]:
    """(key, dot, extension): up to the first dot in the last part of the name, as WebDataset has it."""
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    return folder + slash + stem, dot, extension


def label_of(sample: Sample) -> str | None:
    """The class that a sample says: by its JSON, its .cls, or the folder in its key."""
    for extension in LABELS:
        if extension in sample.said and (label := in_words(extension, sample.said[extension])):
            return label
    folder = PurePosixPath(shown(sample.key)).parent.name
    return unicodedata.normalize("NFC", folder) if folder not in ("", "/", "..") else None


def in_words(extension: str, content: bytes) -> str | None:
    """The label in a member's bytes, if there is one."""
    try:
        said: Any = json.loads(content) if extension == "json" else content.decode()
    except (ValueError, RecursionError):
        return None
    if isinstance(said, dict):
        said = next((said[key] for key in said if str(key).lower() in LABEL_COLUMNS), None)
    if isinstance(said, bool) or not isinstance(said, str | int):
        return None
    return unicodedata.normalize("NFC", str(said).strip()) or None


def split_of(address: str) -> str:
    """The split that a word in a shard's name says, or its folder's whole name; else `all`."""
    path = PurePosixPath(address)
    for words in (words_of(path.stem), [path.parent.name.lower()]):
        said = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
        if len(said) == 1:
            return said.pop()
    return "all"


def words_of(name: str) -> list[str]:
    """The words in a name, in small letters."""
    return "".join(c if c.isalpha() else " " for c in name.lower()).split()


def shown(name: str) -> str:
    """A member's name that can be printed and stored."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def compressed(file: BinaryIO) -> str | None:
    """What a file is packed with, if it is."""
    file.seek(0)
    start = file.read(6)
    kinds = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
    return next((f"compressed by {kind}" for magic, kind in kinds.items() if start.startswith(magic)), None)
