"""Reads a tar file in the WebDataset layout to make its index.

Members with the same key, their path up to the first dot of the file name, are one sample. Nothing is unpacked, so no
member can do harm by its name; an image that is not a regular file is listed with the reason.
"""

import hashlib
import json
import tarfile
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from vitrail.data.decode import EXTENSIONS
from vitrail.data.shards.cache import open_shard
from vitrail.data.shards.index import MAX_IMAGE_BYTES, SPLITS, Fault, ShardIndex, empty_columns
from vitrail.data.shards.storage import Shard, StorageUnreachable
from vitrail.data.source import SPLIT_NAMES
from vitrail.data.strings import StringArray
from vitrail.data.table import LABEL_COLUMNS
from vitrail.errors import VitrailError

MAX_LABEL_BYTES = 1 << 20  # also the limit of a tar header
CHUNK_BYTES = 1 << 20
LABEL_EXTENSIONS = ("json", "cls", "label")  # by priority
BLOCK = 512  # bytes
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}


@dataclass
class TarSample:
    """The members of one key."""

    key: str
    image: tarfile.TarInfo | None = None
    sha256: bytes = b""
    fault: Fault = Fault.NONE
    label_members: dict[str, bytes] = field(default_factory=dict)


class TarImage(NamedTuple):
    """An image with its label, as a row of the index."""

    name: str
    label: str
    offset: int
    length: int
    fault: Fault
    sha256: bytes


class _LimitedFile:
    """A file that refuses large reads: a tar header may lie about its size and fill the memory."""

    def __init__(self, file: BinaryIO, size: int):
        self.file = file
        self.size = size
        self.tell = file.tell

    def seek(self, offset: int) -> int:
        return self.file.seek(min(offset, self.size))

    def read(self, n: int = -1) -> bytes:
        if not 0 <= n <= MAX_LABEL_BYTES:
            raise tarfile.ReadError(f"a header of {n:,} bytes")
        return self.file.read(n)


def index_tar(shard: Shard) -> ShardIndex:
    """Returns the index of a shard after reading it once.

    If the shard is damaged, the images before the damage are listed and `damaged` describes it. Raises `VitrailError`
    if nothing in it is a tar file.
    """
    images: list[TarImage] = []
    damaged: list[str] = []
    samples_without_image = 0
    try:
        with open_shard(shard) as file:
            for sample in iter_samples(shard, file, damaged):
                if sample.image is None:
                    samples_without_image += 1
                    continue
                name, label = printable_name(sample.image.name), find_label(sample)
                if label is None:
                    damaged.append(f"{shard.address}: {name} has no label ({', '.join(LABEL_EXTENSIONS)})")
                    continue
                offset, length = sample.image.offset_data, sample.image.size
                images.append(TarImage(name, label, offset, length, sample.fault, sample.sha256))
    except OSError as error:
        reason = str(error) if isinstance(error, StorageUnreachable) else error.strerror or str(error)
        damaged.append(f"{shard.address} cannot be read: {reason}")
    sentence = f"{shard.address}: {samples_without_image} samples without an image are skipped"
    return build_tar_index(shard, images, (sentence,) if samples_without_image else (), tuple(damaged))


def build_tar_index(
    shard: Shard, images: Sequence[TarImage], ignored: tuple[str, ...], damaged: tuple[str, ...]
) -> ShardIndex:
    classes = tuple(sorted({image.label for image in images}))
    code_of = {label: code for code, label in enumerate(classes)}
    columns = empty_columns(len(images))
    columns["split"][:] = SPLITS.index(find_split(shard.address))
    for i, image in enumerate(images):
        row = {"offset": image.offset, "length": image.length, "label": code_of[image.label], "fault": image.fault}
        for column, value in row.items():
            columns[column][i] = value
        columns["sha256"][i] = np.frombuffer(image.sha256.ljust(32, b"\0"), dtype=np.uint8)
    stem = PurePosixPath(shard.address).stem
    names = StringArray.from_strings(f"{stem}/{image.name}" for image in images)
    return ShardIndex(shard.address, (shard,), classes, columns, names, ignored=ignored, damaged=damaged)


def iter_samples(shard: Shard, file: BinaryIO, damaged: list[str]) -> Iterator[TarSample]:
    """Yields the samples of a shard in order; appends a sentence to `damaged` if they end early."""
    sample: TarSample | None = None
    members = 0
    try:
        limited_file: Any = _LimitedFile(file, shard.size)
        with tarfile.open(fileobj=limited_file, mode="r:", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it remembers all of them
                key, extension = split_key(member.name)
                if member.isdir() or not extension or key.rpartition("/")[2].startswith("__"):
                    continue
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield sample
                    sample = TarSample(key)
                members += 1
                add_member(sample, member, extension.lower(), file, shard.size)
            end = tar.offset
        file.seek(end)
        rest = file.read(BLOCK)
        if rest.count(0) != BLOCK:
            reason = "the rest is damaged" if rest else "the end mark is missing, so it may be truncated"
            damaged.append(f"{shard.address}: after {members} members {reason}")
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        if not members:
            raise not_a_tar(shard, file, error) from None
        damaged.append(f"{shard.address}: after {members} members the rest is damaged or missing ({error})")
    if sample is not None:
        yield sample


def not_a_tar(shard: Shard, file: BinaryIO, error: Exception) -> VitrailError:
    """Returns the error for a file that is not a tar file, or is compressed."""
    file.seek(0)
    start = file.read(6)
    for magic, compression in COMPRESSIONS.items():
        if start.startswith(magic):
            return VitrailError(
                f"{shard.address} is compressed by {compression}",
                "decompress it once: images in a compressed tar file cannot be read one by one",
            )
    return VitrailError(f"{shard.address} is not a tar file ({error})")


def add_member(sample: TarSample, member: tarfile.TarInfo, extension: str, file: BinaryIO, shard_size: int) -> None:
    """Adds a member to its sample if it is the first image, or may have the label."""
    last_extension = extension.rpartition(".")[2]
    fault = find_fault(member, shard_size)
    if "." + last_extension in EXTENSIONS and sample.image is None:
        sample.image, sample.fault = member, fault
        if not fault:
            sha = hashlib.sha256()
            for chunk in iter_chunks(file, member):
                sha.update(chunk)
            sample.sha256 = sha.digest()
    elif extension in LABEL_EXTENSIONS and member.isreg() and member.size <= MAX_LABEL_BYTES and not fault:
        sample.label_members[extension] = b"".join(iter_chunks(file, member))


def iter_chunks(file: BinaryIO, member: tarfile.TarInfo) -> Iterator[bytes]:
    """Yields the bytes of a member."""
    file.seek(member.offset_data)
    remaining = member.size
    while remaining > 0 and (chunk := file.read(min(CHUNK_BYTES, remaining))):
        remaining -= len(chunk)
        yield chunk


def find_fault(member: tarfile.TarInfo, shard_size: int) -> Fault:
    """Returns why a member cannot be read as an image."""
    path = PurePosixPath(member.name)
    if not member.name.isprintable() and printable_name(member.name) != member.name:
        return Fault.NOT_UTF8
    if path.is_absolute() or ".." in path.parts:
        return Fault.OUTSIDE
    if member.issparse():
        return Fault.SPARSE
    if not member.isreg():
        return Fault.LINK
    if member.offset_data + member.size > shard_size:
        return Fault.TRUNCATED
    return Fault.TOO_LARGE if member.size > MAX_IMAGE_BYTES else Fault.NONE


def split_key(name: str) -> tuple[str, str]:
    """Returns key and extension, divided at the first dot of the file name, as in WebDataset."""
    folder, slash, file_name = name.rpartition("/")
    stem, _, extension = file_name.partition(".")
    return folder + slash + stem, extension


def find_label(sample: TarSample) -> str | None:
    """Returns the class of a sample: from its JSON, its .cls, its .label, or the folder in its key."""
    for extension in LABEL_EXTENSIONS:
        content = sample.label_members.get(extension)
        if content is not None and (label := parse_label(extension, content)):
            return label
    folder = PurePosixPath(printable_name(sample.key)).parent.name
    return unicodedata.normalize("NFC", folder) if folder not in ("", "/", "..") else None


def parse_label(extension: str, content: bytes) -> str | None:
    """Returns the label in a member's bytes, None if there is none."""
    try:
        value: Any = json.loads(content) if extension == "json" else content.decode()
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = next((value[key] for key in value if str(key).lower() in LABEL_COLUMNS), None)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return unicodedata.normalize("NFC", str(value).strip()) or None


def find_split(address: str) -> str:
    """Returns the split that a word in a shard's name means, or else its folder's whole name; `all` if none does."""
    path = PurePosixPath(address)
    for candidates in (words_in(path.stem), [path.parent.name.lower()]):
        splits = {SPLIT_NAMES[word] for word in candidates if word in SPLIT_NAMES}
        if len(splits) == 1:
            return splits.pop()
    return "all"


def words_in(name: str) -> list[str]:
    """Returns the words of a name in lower case."""
    return "".join(c if c.isalpha() else " " for c in name.lower()).split()


def printable_name(name: str) -> str:
    """Returns a member's name with bytes that are not UTF-8 replaced."""
    return name.encode(errors="surrogateescape").decode(errors="replace")
