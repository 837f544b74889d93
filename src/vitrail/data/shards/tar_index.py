"""Reads a tar file in the WebDataset layout to make its index.

`samples` says which members are a sample. Nothing is unpacked, so no member can do harm by its name; an image that is
not a regular file is listed with the reason.
"""

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from vitrail.data.formats import EXTENSIONS
from vitrail.data.labels import SEPARATOR
from vitrail.data.shards.cache import open_shard
from vitrail.data.shards.index import MAX_IMAGE_BYTES, SPLITS, Fault, ShardIndex, empty_columns
from vitrail.data.shards.samples import (
    LABEL_EXTENSIONS,
    Label,
    TarMember,
    TarSample,
    divide_group,
    is_skipped,
    parse_label,
    printable_name,
    sample_key,
    split_name,
)
from vitrail.data.shards.storage import Shard, StorageUnreachable
from vitrail.data.source import SPLIT_NAMES, LeftOut
from vitrail.data.strings import StringArray
from vitrail.data.walk import Omissions
from vitrail.errors import VitrailError

MAX_LABEL_BYTES = 1 << 20  # also the limit of a tar header
CHUNK_BYTES = 1 << 20
BLOCK = 512  # bytes
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}


class TarImage(NamedTuple):
    """An image with its label, as a row of the index."""

    name: str
    label: Label
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
    reading = TarReading(shard)
    try:
        with open_shard(shard) as file:
            for sample in iter_samples(shard, file, reading):
                if sample.image is None:
                    continue
                name = printable_name(sample.image.info.name)
                if sample.label is None:
                    reading.damaged.append(f"{shard.address}: {name} has no label ({', '.join(LABEL_EXTENSIONS)})")
                    continue
                offset, length = sample.image.info.offset_data, sample.image.info.size
                images.append(TarImage(name, sample.label, offset, length, sample.image.fault, sample.image.sha256))
    except OSError as error:
        reason = str(error) if isinstance(error, StorageUnreachable) else error.strerror or str(error)
        reading.damaged.append(f"{shard.address} cannot be read: {reason}")
    return build_tar_index(shard, images, reading.describe(), tuple(reading.damaged))


class TarReading:
    """What is found in a shard besides its samples."""

    def __init__(self, shard: Shard):
        self.shard = shard
        self.damaged: list[str] = []  # sentences
        self.omissions = Omissions()
        self.further_images: list[str] = []
        self.without_image: list[str] = []  # names of members, one for each sample

    def describe(self) -> tuple[LeftOut, ...]:
        """Returns sentences on the members that are not used."""
        texts = {
            "further image{s} of samples that have one": self.further_images,
            "sample{s} without an image": self.without_image,
        }
        left_out = self.omissions.describe(self.shard.address)
        for text, names in texts.items():
            if names:
                plural = text.format(s="s" * (len(names) > 1))
                left_out.append(LeftOut(f"{self.shard.address}: {len(names)} {plural}, first {names[0]}", len(names)))
        return tuple(left_out)

    def divide(self, key: str, group: list[TarMember]) -> list[TarSample]:
        """Returns the samples of a group of members, and remembers the others."""
        samples, further = divide_group(key, group)
        self.further_images += [printable_name(image.info.name) for image in further]
        if samples[0].image is None:
            self.without_image.append(printable_name(group[0].info.name))
        return samples


def build_tar_index(
    shard: Shard, images: Sequence[TarImage], left_out: tuple[LeftOut, ...], damaged: tuple[str, ...]
) -> ShardIndex:
    has_sets = any(isinstance(image.label, tuple) for image in images)
    sets = {text_of(image.label): image.label for image in images}
    classes = tuple(sorted(sets))
    code_of = {text: code for code, text in enumerate(classes)}
    columns = empty_columns(len(images))
    columns["split"][:] = SPLITS.index(find_split(shard.address))
    for i, image in enumerate(images):
        row = {
            "offset": image.offset,
            "length": image.length,
            "label": code_of[text_of(image.label)],
            "fault": image.fault,
        }
        for column, value in row.items():
            columns[column][i] = value
        columns["sha256"][i] = np.frombuffer(image.sha256.ljust(32, b"\0"), dtype=np.uint8)
    stem = PurePosixPath(shard.address).stem
    names = StringArray.from_strings(f"{stem}/{image.name}" for image in images)
    label_sets = tuple(to_set(sets[text]) for text in classes) if has_sets else ()
    return ShardIndex(
        shard.address, (shard,), classes, columns, names, left_out=left_out, damaged=damaged, label_sets=label_sets
    )


def text_of(label: Label) -> str:
    """Returns the text of a label, or of several."""
    return label if isinstance(label, str) else SEPARATOR.join(label)


def to_set(label: Label) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else label


def iter_samples(shard: Shard, file: BinaryIO, reading: TarReading) -> Iterator[TarSample]:
    """Yields the samples of a shard in order; `reading` gets the other members, and a sentence if they end early."""
    group: list[TarMember] = []
    key = None
    members = 0
    try:
        limited_file: Any = _LimitedFile(file, shard.size)
        with tarfile.open(fileobj=limited_file, mode="r:", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it remembers all of them
                if info.isdir() or is_skipped(info.name):
                    continue
                members += 1
                extension = split_name(info.name)[1]
                if f".{extension}" not in EXTENSIONS and extension not in LABEL_EXTENSIONS:
                    reading.omissions.add_file(printable_name(info.name))
                    continue
                if key is not None and sample_key(info.name) != key:
                    yield from reading.divide(key, group)
                    group = []
                key = sample_key(info.name)
                group.append(read_member(info, file, shard.size))
            end = tar.offset
        file.seek(end)
        rest = file.read(BLOCK)
        if rest.count(0) != BLOCK:
            reason = "the rest is damaged" if rest else "the end mark is missing, so it may be truncated"
            reading.damaged.append(f"{shard.address}: after {members} members {reason}")
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        if not members:
            raise not_a_tar(shard, file, error) from None
        reading.damaged.append(f"{shard.address}: after {members} members the rest is damaged or missing ({error})")
    if key is not None:
        yield from reading.divide(key, group)


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


def read_member(info: tarfile.TarInfo, file: BinaryIO, shard_size: int) -> TarMember:
    """Returns a member with the digest of an image, or with the label that it has."""
    member = TarMember(info, find_fault(info, shard_size))
    if member.is_image and not member.fault:
        sha = hashlib.sha256()
        for chunk in iter_chunks(file, info):
            sha.update(chunk)
        member.sha256 = sha.digest()
    elif member.is_label and not member.fault and info.size <= MAX_LABEL_BYTES:
        member.label = parse_label(member.extension, b"".join(iter_chunks(file, info)))
    return member


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
