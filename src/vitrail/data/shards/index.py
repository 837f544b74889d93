"""The index of tar shards: where each image lies, how long it is, its class, its SHA-256. A few arrays, no objects.

A safetensors file, `index.safetensors` beside the shards that `vitrail shard` writes: the arrays, and under the
metadata key `vitrail-shards` one JSON document with everything that is said once. Rows are in the order of the source's
listing, which is the order that training draws from; the shards hold them in another (docs/adr/0017).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from vitrail.data.encoded import DIGEST
from vitrail.data.shards.storage import Shard
from vitrail.data.strings import StringArray
from vitrail.errors import VitrailError
from vitrail.files import write_atomically

INDEX_FILE = "index.safetensors"
METADATA_KEY = "vitrail-shards"
FORMAT = 1
MAX_INDEX_BYTES = 8 << 30  # bytes of an index that are read: a hundred million images
MAX_IMAGE_BYTES = 256 << 20  # bytes of an image that are read
SPLITS = ("all", "train", "validation", "test")
FAULTS = (  # why an image is listed and yet cannot be read; the first is none
    "",
    "its name leads out of the shard",
    f"more than the {MAX_IMAGE_BYTES:,} bytes that are read",
    "the shard ends before it does",
    "a link, not a file",
    "its name is not UTF-8",
    "it is stored with holes, which no reader of shards takes",
)
LEADS_OUT, TOO_LARGE, CUT, LINK, NOT_UTF8, HOLES = range(1, len(FAULTS))
COLUMNS: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "shard": (np.int32, ()),
    "offset": (np.int64, ()),
    "length": (np.int64, ()),
    "label": (np.int32, ()),
    "split": (np.int8, ()),
    "fault": (np.uint8, ()),
    "sha256": (np.uint8, (DIGEST,)),
}


@dataclass(frozen=True)
class ShardIndex:
    """Where the images of some shards lie: `columns` as in COLUMNS, a row an image."""

    name: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    columns: dict[str, np.ndarray]
    names: StringArray
    channels: int = 3
    flippable: bool = True
    notes: tuple[str, ...] = ()
    lost: tuple[str, ...] = field(default=())  # what could not be listed, in sentences

    def __len__(self) -> int:
        return len(self.columns["shard"])

    @property
    def bytes(self) -> int:
        """What the arrays take."""
        letters = self.names.data.nbytes + self.names.offsets.nbytes + self.names.rows.nbytes
        return int(letters + sum(column.nbytes for column in self.columns.values()))


def empty_columns(n: int) -> dict[str, np.ndarray]:
    """The columns of `n` images, to be filled."""
    return {name: np.zeros((n, *shape), dtype=kind) for name, (kind, shape) in COLUMNS.items()}


def save_index(index: ShardIndex, path: Path) -> None:
    """Writes an index, whole or not at all; shards are named by where they lie from it."""
    arrays = {**index.columns, "names": index.names.data, "bounds": index.names.offsets}
    document = {
        "format": FORMAT,
        "name": index.name,
        "shards": [{"file": shard.address, "bytes": shard.size} for shard in index.shards],
        "classes": index.classes,
        "channels": index.channels,
        "flippable": index.flippable,
        "notes": index.notes,
        "lost": index.lost,
    }
    document["sha256"] = index_digest(arrays, document)
    metadata = {METADATA_KEY: json.dumps(document, ensure_ascii=False)}
    write_atomically(path, lambda aside: save_file(arrays, aside, metadata=metadata))


def index_digest(arrays: dict[str, np.ndarray], document: dict[str, Any]) -> str:
    """SHA-256 over the document and the names, shapes, types and bytes of the arrays, in the order of names."""
    said = {name: value for name, value in document.items() if name != "sha256"}
    sha = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name} {array.shape} {array.dtype}\n".encode())
        sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def parse_index(content: bytes, where: str) -> ShardIndex:
    """The index in a file's bytes; raises `VitrailError` where it is damaged or says what cannot be."""
    try:
        size = int.from_bytes(content[:8], "little")
        document = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][METADATA_KEY])
        arrays = load(content)
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r} is of another version of vitrail")
        if document["sha256"] != index_digest(arrays, document):
            raise ValueError("its SHA-256 is not what it says")
        return checked(arrays, document)
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        words = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise VitrailError(
            f"{where} is not a whole index of shards: {words}", "move it away: the shards are then read for a new one"
        ) from None


def checked(arrays: dict[str, np.ndarray], document: dict[str, Any]) -> ShardIndex:
    """The index of these arrays; raises `ValueError` where they do not fit one another."""
    columns = {name: arrays[name] for name in COLUMNS}
    bounds, letters = arrays["bounds"], arrays["names"]
    n = len(columns["shard"])
    for name, (kind, shape) in COLUMNS.items():
        if columns[name].dtype != kind or columns[name].shape != (n, *shape):
            raise ValueError(f"{name} is {columns[name].dtype} {columns[name].shape} for {n} images")
    if letters.dtype != np.uint8 or letters.ndim != 1 or bounds.dtype != np.int64 or bounds.shape != (n + 1,):
        raise ValueError("the names do not fit the images")
    if bounds[0] != 0 or bounds[-1] != len(letters) or (np.diff(bounds) < 0).any():
        raise ValueError("the names overlap")
    shards = tuple(Shard(plain(each["file"]), int(each["bytes"])) for each in document["shards"])
    classes = tuple(map(str, document["classes"]))
    for name, most in (("shard", len(shards)), ("label", len(classes)), ("split", len(SPLITS)), ("fault", len(FAULTS))):
        if n and (columns[name].min() < 0 or columns[name].max() >= most):
            raise ValueError(f"{name} points at what is not there")
    if n and min(columns["offset"].min(), columns["length"].min()) < 0:
        raise ValueError("images lie before their shard")
    columns["fault"] = np.where(
        columns["length"] > MAX_IMAGE_BYTES, np.maximum(columns["fault"], TOO_LARGE), columns["fault"]
    )
    channels = document["channels"]
    if channels not in (1, 3):
        raise ValueError(f"{channels!r} channels")
    notes, lost = (tuple(map(str, document[key])) for key in ("notes", "lost"))
    flippable = bool(document["flippable"])
    return ShardIndex(
        str(document["name"]), shards, classes, columns, StringArray(letters, bounds), channels, flippable, notes, lost
    )


def plain(file: str) -> str:
    """A shard's name as an index may say it: below the index's folder."""
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "://" in file or "\\" in file or "\0" in file or not path.name:
        raise ValueError(f"{file!r} is no name of a shard beside it")
    return file


def select_shards(index: ShardIndex, shards: Sequence[Shard]) -> ShardIndex:
    """The part of an index that lies in these shards, in the order of the index; `shards` as they lie now."""
    place = {shard.address: number for number, shard in enumerate(shards)}
    number = np.array([place.get(shard.address, -1) for shard in index.shards], dtype=np.int32)
    shard = number[index.columns["shard"]] if len(index) else index.columns["shard"]
    rows = np.flatnonzero(shard >= 0)
    columns = {name: column[rows] for name, column in index.columns.items()}
    columns["shard"] = shard[rows]
    return replace(index, shards=tuple(shards), columns=columns, names=index.names.take(rows))


def concatenate_indices(name: str, parts: Sequence[ShardIndex]) -> ShardIndex:
    """The images of several indices as one, in their order."""
    if len(parts) == 1:
        return replace(parts[0], name=name)
    classes = tuple(sorted({label for part in parts for label in part.classes}))
    code = {label: number for number, label in enumerate(classes)}
    columns: dict[str, list[np.ndarray]] = {column: [] for column in COLUMNS}
    before = 0
    for part in parts:
        own = dict(part.columns)
        own["shard"] = own["shard"] + np.int32(before)
        own["label"] = np.array([code[label] for label in part.classes], dtype=np.int32)[own["label"]]
        for column, found in own.items():
            columns[column].append(found)
        before += len(part.shards)
    letters = [part.names for part in parts]
    return ShardIndex(
        name,
        tuple(shard for part in parts for shard in part.shards),
        classes,
        {column: np.concatenate(found) for column, found in columns.items()},
        names_joined(letters),
        channels=max(part.channels for part in parts),
        flippable=all(part.flippable for part in parts),
        notes=tuple(note for part in parts for note in part.notes),
        lost=tuple(sentence for part in parts for sentence in part.lost),
    )


def names_joined(parts: Sequence[StringArray]) -> StringArray:
    """All names of all parts, in their order."""
    shifts = np.cumsum([0, *(len(part.data) for part in parts)])[:-1]
    rows_before = np.cumsum([0, *(len(part.offsets) for part in parts)])[:-1]
    bounds = np.concatenate([part.offsets + shift for part, shift in zip(parts, shifts, strict=True)])
    rows = np.concatenate([part.rows + before for part, before in zip(parts, rows_before, strict=True)])
    return StringArray(np.concatenate([part.data for part in parts]), bounds, rows)
