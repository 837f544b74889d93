"""An index on disk: `index.safetensors`, in the folder of the shards that `vitrail shard` writes.

It holds the arrays, and under the metadata key `vitrail-shards` a JSON document with everything else.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from vitrail.data.bands import IMAGE_CHANNELS, Bands, Channels
from vitrail.data.labels import NUMBER_SEPARATOR
from vitrail.data.shards.index import COLUMNS, MAX_IMAGE_BYTES, SPLITS, UNKNOWN_CHANNELS, Fault, ShardIndex
from vitrail.data.shards.storage import Shard
from vitrail.data.source import LeftOut
from vitrail.data.strings import StringArray
from vitrail.errors import UsageError, VitrailError
from vitrail.files import write_atomically

METADATA_KEY = "vitrail-shards"
FORMAT = 5  # 1 had no numbers of files, 2 no sets of labels, 3 no bands and no names of numbers, 4 no groups
MAX_INDEX_BYTES = 8 << 30  # a hundred million images


def save_index(index: ShardIndex, path: Path) -> None:
    """Writes an index atomically; the addresses of its shards are relative to its folder."""
    arrays = {**index.columns, "names": index.names.data, "bounds": index.names.offsets}
    document = {
        "format": FORMAT,
        "name": index.name,
        "shards": [{"file": shard.address, "bytes": shard.size} for shard in index.shards],
        "classes": index.classes,
        "label_sets": index.label_sets,
        "groups": index.groups,
        "number_names": index.number_names,
        "channels": asdict(index.channels) if isinstance(index.channels, Bands) else index.channels,
        "flippable": index.can_flip,
        "left_out": [[each.sentence, each.files] for each in index.left_out],
        "lost": index.damaged,
    }
    document["sha256"] = index_digest(arrays, document)
    metadata = {METADATA_KEY: json.dumps(document, ensure_ascii=False)}
    write_atomically(path, lambda temporary: save_file(arrays, temporary, metadata=metadata))


def index_digest(arrays: dict[str, np.ndarray], document: dict[str, Any]) -> str:
    """SHA-256 over the document, without its own digest, and over the arrays sorted by name."""
    content = {name: value for name, value in document.items() if name != "sha256"}
    sha = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name} {array.shape} {array.dtype}\n".encode())
        sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def parse_index(content: bytes, address: str) -> ShardIndex:
    """Returns the index in the bytes of a file; raises `VitrailError` if it is damaged or impossible."""
    try:
        header_bytes = int.from_bytes(content[:8], "little")
        document = json.loads(json.loads(content[8 : 8 + header_bytes])["__metadata__"][METADATA_KEY])
        arrays = load(content)
        if document["format"] not in range(1, FORMAT + 1):
            raise ValueError(f"format {document['format']!r} is of another version of vitrail")
        if document["sha256"] != index_digest(arrays, document):
            raise ValueError("its SHA-256 does not match")
        return build_index(upgrade_arrays(arrays, document), upgrade_document(document))
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError, UsageError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise VitrailError(
            f"{address} is not a valid index of shards: {reason}",
            "move it away: the shards are then read to make a new one",
        ) from None


def upgrade_document(document: dict[str, Any]) -> dict[str, Any]:
    """Returns a document in the current format; format 1 has only sentences on files that are not used."""
    if document["format"] == FORMAT:
        return document
    upgraded = {"label_sets": [], "number_names": [], "groups": [], **document}
    if document["format"] == 1:
        upgraded["left_out"] = [[sentence, 0] for sentence in document["notes"]]
    return upgraded


def upgrade_arrays(arrays: dict[str, np.ndarray], document: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays in the current format; before format 5 there is no column of groups."""
    has_groups = document["format"] >= 5
    return arrays if has_groups else {"group": np.zeros(len(arrays["shard"]), dtype=COLUMNS["group"][0]), **arrays}


def build_index(arrays: dict[str, np.ndarray], document: dict[str, Any]) -> ShardIndex:
    """Returns the index of an index file; raises `ValueError` if its arrays do not match."""
    columns = {name: arrays[name] for name in COLUMNS}
    shards = tuple(Shard(check_relative(each["file"]), int(each["bytes"])) for each in document["shards"])
    classes = tuple(map(str, document["classes"]))
    groups = tuple(map(str, document["groups"]))
    check_columns(columns, {"shard": len(shards), "label": len(classes), "group": max(1, len(groups))})
    names = build_names(arrays["names"], arrays["bounds"], len(columns["shard"]))
    is_too_large = columns["length"] > MAX_IMAGE_BYTES
    too_large = np.uint8(Fault.TOO_LARGE.value)
    columns["fault"] = np.where(is_too_large, np.maximum(columns["fault"], too_large), columns["fault"])
    label_sets = tuple(tuple(map(str, labels)) for labels in document["label_sets"])
    if label_sets and len(label_sets) != len(classes):
        raise ValueError(f"{len(label_sets)} sets of labels for {len(classes)} texts")
    number_names = tuple(map(str, document["number_names"]))
    if number_names and any(len(parse_texts(text)) != len(number_names) for text in classes):
        raise ValueError(f"a text is not that of {len(number_names)} numbers")
    return ShardIndex(
        str(document["name"]),
        shards,
        classes,
        columns,
        names,
        channels=parse_channels(document["channels"]),
        can_flip=bool(document["flippable"]),
        left_out=tuple(LeftOut(str(sentence), int(files)) for sentence, files in document["left_out"]),
        damaged=tuple(map(str, document["lost"])),
        label_sets=label_sets,
        groups=groups,
        number_names=number_names,
    )


def parse_channels(channels: Any) -> Channels:
    """Returns the channels of an index file; raises `ValueError` or `UsageError` for impossible ones."""
    if isinstance(channels, dict):
        return Bands(int(channels["count"]), channels["values"])
    if channels not in (UNKNOWN_CHANNELS, *IMAGE_CHANNELS):
        raise ValueError(f"{channels!r} channels")
    return int(channels)


def parse_texts(text: str) -> list[float]:
    """Returns the numbers in the text of an image; raises `ValueError`."""
    return [float(part) for part in text.split(NUMBER_SEPARATOR)]


def check_columns(columns: dict[str, np.ndarray], counts: dict[str, int]) -> None:
    """Raises `ValueError` for a wrong shape or type, or a value out of range; `counts` are those of codes."""
    n = len(columns["shard"])
    for name, (dtype, shape) in COLUMNS.items():
        if columns[name].dtype != dtype or columns[name].shape != (n, *shape):
            raise ValueError(f"{name} is {columns[name].dtype} {columns[name].shape} for {n} images")
    if not n:
        return
    for name, count in (counts | {"split": len(SPLITS), "fault": len(Fault)}).items():
        if columns[name].min() < 0 or columns[name].max() >= count:
            raise ValueError(f"{name} is out of range")
    if min(columns["offset"].min(), columns["length"].min()) < 0:
        raise ValueError("an offset or a length is negative")


def build_names(letters: np.ndarray, bounds: np.ndarray, n: int) -> StringArray:
    """Returns the names of `n` images; raises `ValueError` if the arrays do not match."""
    if letters.dtype != np.uint8 or letters.ndim != 1 or bounds.dtype != np.int64 or bounds.shape != (n + 1,):
        raise ValueError("the names do not match the images")
    if bounds[0] != 0 or bounds[-1] != len(letters) or (np.diff(bounds) < 0).any():
        raise ValueError("the names overlap")
    return StringArray(letters, bounds)


def check_relative(file: str) -> str:
    """Returns a shard's path; raises `ValueError` if it is not below the index's folder."""
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "://" in file or "\\" in file or "\0" in file or not path.name:
        raise ValueError(f"{file!r} is not a path of a shard in its folder")
    return file
