"""The index of tar shards: where each image is, its length, class and SHA-256, in a few arrays.

Rows are in the order of the source's listing, from which training draws; the shards hold the images in another order
(docs/adr/0017).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from vitrail.data.bands import Bands, Channels, count_of, describe_channels
from vitrail.data.encoded import SHA256_BYTES
from vitrail.data.shards.storage import Shard
from vitrail.data.source import LeftOut
from vitrail.data.strings import StringArray
from vitrail.errors import VitrailError

INDEX_FILE = "index.safetensors"
MAX_IMAGE_BYTES = 256 << 20  # larger images are not read
SPLITS = ("all", "train", "validation", "test")
UNKNOWN_CHANNELS = 0  # of shards that others wrote: the images decide
COLUMNS: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {  # dtype and shape of a row
    "shard": (np.int32, ()),
    "offset": (np.int64, ()),
    "length": (np.int64, ()),
    "label": (np.int32, ()),
    "split": (np.int8, ()),
    "fault": (np.uint8, ()),
    "group": (np.int32, ()),
    "sha256": (np.uint8, (SHA256_BYTES,)),
}


class Fault(IntEnum):
    """Why an image is listed but cannot be read. The numbers are in index files."""

    NONE = 0
    OUTSIDE = 1
    TOO_LARGE = 2
    TRUNCATED = 3
    LINK = 4
    NOT_UTF8 = 5
    SPARSE = 6

    @property
    def reason(self) -> str:
        return FAULT_REASONS[self]


FAULT_REASONS = {
    Fault.NONE: "",
    Fault.OUTSIDE: "its name points outside the shard",
    Fault.TOO_LARGE: f"it has more than {MAX_IMAGE_BYTES:,} bytes",
    Fault.TRUNCATED: "the shard ends before it does",
    Fault.LINK: "it is a link, not a file",
    Fault.NOT_UTF8: "its name is not UTF-8",
    Fault.SPARSE: "it is a sparse file, which readers of shards do not support",
}


@dataclass(frozen=True)
class ShardIndex:
    """The images of some shards: one row per image in `columns` (see `COLUMNS`) and in `names`."""

    name: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    columns: dict[str, np.ndarray]
    names: StringArray
    channels: Channels = UNKNOWN_CHANNELS
    can_flip: bool = True
    left_out: tuple[LeftOut, ...] = ()  # files and samples that are not used
    damaged: tuple[str, ...] = ()  # sentences about what could not be indexed
    label_sets: tuple[tuple[str, ...], ...] = ()  # the labels in the text of each of `classes`, if images have several
    groups: tuple[str, ...] = ()  # the names of the groups of images; none if the images have no groups
    number_names: tuple[str, ...] = ()  # the names of the numbers in the text of each of `classes`, if they are numbers

    def __len__(self) -> int:
        return len(self.columns["shard"])

    @property
    def bytes(self) -> int:
        """The memory of the arrays."""
        names = self.names.data.nbytes + self.names.offsets.nbytes + self.names.rows.nbytes
        return int(names + sum(column.nbytes for column in self.columns.values()))


def empty_columns(n: int) -> dict[str, np.ndarray]:
    """Returns zeros for `n` images."""
    return {name: np.zeros((n, *shape), dtype=dtype) for name, (dtype, shape) in COLUMNS.items()}


def select_shards(index: ShardIndex, shards: Sequence[Shard]) -> ShardIndex:
    """Returns the images of an index that are in these shards, which replace those of the same address."""
    number_of = {shard.address: number for number, shard in enumerate(shards)}
    new_numbers = np.array([number_of.get(shard.address, -1) for shard in index.shards], dtype=np.int32)
    shard_column = new_numbers[index.columns["shard"]] if len(index) else index.columns["shard"]
    rows = np.flatnonzero(shard_column >= 0)
    columns = {name: column[rows] for name, column in index.columns.items()}
    columns["shard"] = shard_column[rows]
    return replace(index, shards=tuple(shards), columns=columns, names=index.names.take(rows))


def concatenate_indices(name: str, indices: Sequence[ShardIndex]) -> ShardIndex:
    """Joins the images of several indices, in their order."""
    if len(indices) == 1:
        return replace(indices[0], name=name)
    classes = tuple(sorted({label for index in indices for label in index.classes}))
    code_of = {label: code for code, label in enumerate(classes)}
    sets = {text: labels for index in indices for text, labels in zip(index.classes, index.label_sets, strict=False)}
    groups = join_groups(indices)
    group_code_of = {group: code for code, group in enumerate(groups)}
    columns: dict[str, list[np.ndarray]] = {column: [] for column in COLUMNS}
    shards: list[Shard] = []
    for index in indices:
        own = dict(index.columns)
        own["shard"] = own["shard"] + np.int32(len(shards))
        own["label"] = np.array([code_of[label] for label in index.classes], dtype=np.int32)[own["label"]]
        if groups:
            own["group"] = np.array([group_code_of[group] for group in index.groups], dtype=np.int32)[own["group"]]
        for column, values in own.items():
            columns[column].append(values)
        shards += index.shards
    return ShardIndex(
        name,
        tuple(shards),
        classes,
        {column: np.concatenate(values) for column, values in columns.items()},
        concatenate_names([index.names for index in indices]),
        channels=join_channels(indices),
        can_flip=all(index.can_flip for index in indices),
        left_out=tuple(each for index in indices for each in index.left_out),
        damaged=tuple(sentence for index in indices for sentence in index.damaged),
        label_sets=tuple(sets.get(text, (text,)) for text in classes) if sets else (),
        groups=groups,
        number_names=join_number_names(indices),
    )


def join_channels(indices: Sequence[ShardIndex]) -> Channels:
    """Returns the channels of all images; raises `VitrailError` if some have bands and others do not have these."""
    kinds = {index.channels: index for index in indices}
    if len(kinds) > 1 and any(isinstance(channels, Bands) for channels in kinds):
        (first, index), (second, other), *_ = kinds.items()
        raise VitrailError(
            f"the shards of {index.name} have {describe_kind(first)}, those of {other.name} {describe_kind(second)}",
            "give shards of images with the same channels",
        )
    return max(kinds, key=count_of)


def join_groups(indices: Sequence[ShardIndex]) -> tuple[str, ...]:
    """Returns the groups of all images; raises `VitrailError` if only some images have groups."""
    without = next((index for index in indices if len(index) and not index.groups), None)
    grouped = next((index for index in indices if index.groups), None)
    if without and grouped:
        raise VitrailError(
            f"the shards of {grouped.name} have groups, and those of {without.name} have none",
            "give shards that all have groups, or write them again with vitrail shard",
        )
    return tuple(sorted({group for index in indices for group in index.groups}))


def describe_kind(channels: Channels) -> str:
    return describe_channels(channels) if channels else "images without an index"


def join_number_names(indices: Sequence[ShardIndex]) -> tuple[str, ...]:
    """Returns the names of the numbers of all images; raises `VitrailError` if they differ."""
    first, *others = indices
    for other in others:
        if other.number_names != first.number_names:
            names = (", ".join(index.number_names) or "no numbers" for index in (first, other))
            raise VitrailError(
                f"the shards of {first.name} and {other.name} have different numbers: {' and '.join(names)}",
                "give shards of images with the same numbers",
            )
    return first.number_names


def concatenate_names(arrays: Sequence[StringArray]) -> StringArray:
    """Joins string arrays, in their order."""
    data_starts = np.cumsum([0, *(len(array.data) for array in arrays)])[:-1]
    row_starts = np.cumsum([0, *(len(array.offsets) for array in arrays)])[:-1]
    offsets = np.concatenate([array.offsets + start for array, start in zip(arrays, data_starts, strict=True)])
    rows = np.concatenate([array.rows + start for array, start in zip(arrays, row_starts, strict=True)])
    return StringArray(np.concatenate([array.data for array in arrays]), offsets, rows)
