"""Tar shards -> images: every image is found by its place, so any order, any split and any resume are exact."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np

from vitrail.console import log, progress_bar
from vitrail.data.decode import TRANSIENT_ERRNOS, ImageError, ImageUnreachable, read_size
from vitrail.data.encoded import EncodedImages
from vitrail.data.shards.address import expand_address, join_address, parent_folder, shard_set_name
from vitrail.data.shards.index import (
    CUT,
    FAULTS,
    INDEX_FILE,
    MAX_INDEX_BYTES,
    SPLITS,
    ShardIndex,
    concatenate_indices,
    parse_index,
    save_index,
    select_shards,
)
from vitrail.data.shards.storage import (
    Shard,
    StorageUnreachable,
    cache_key,
    drop_copy,
    is_remote,
    list_tars,
    local,
    mark_cacheable,
    read_range,
    read_small_file,
    stat_shard,
)
from vitrail.data.shards.tar_index import index_tar
from vitrail.data.source import Listing, Source
from vitrail.data.strings import Categorical
from vitrail.errors import UsageError, VitrailError
from vitrail.files import cache_folder

ASKED_AT_ONCE = 16  # addresses
HEAD = 1 << 16  # bytes of an image in which most say their size


@dataclass(frozen=True)
class ShardImages(EncodedImages):
    """Images in tar shards: `rows` of an index that says where they are, in order."""

    shard_index: ShardIndex
    rows: np.ndarray
    channels: int = 3

    def __len__(self) -> int:
        return len(self.rows)

    def location(self, i: int) -> str:
        """SHARD:NAME."""
        row = self.rows[i]
        return (
            f"{self.shard_index.shards[self.shard_index.columns['shard'][row]].address}:{self.shard_index.names[row]}"
        )

    def read_bytes(self, i: int) -> bytes:
        """The bytes of an image, which are those that were indexed, or `ImageError` says why not."""
        row = self.rows[i]
        shard = self.refuse_lost(i)
        length = int(self.shard_index.columns["length"][row])
        digest = self.shard_index.columns["sha256"][row].tobytes()
        for again in (False, True):
            try:
                found = read_range(shard, int(self.shard_index.columns["offset"][row]), length)
            except FileNotFoundError:
                raise ImageError(self.location(i), "the shard is not there") from None
            except OSError as error:
                passing = isinstance(error, StorageUnreachable) or error.errno in TRANSIENT_ERRNOS
                kind = ImageUnreachable if passing else ImageError
                raise kind(self.location(i), error.strerror or str(error)) from None
            if hashlib.sha256(found).digest() == digest:
                return found
            if again or not shard.cacheable:
                break
            drop_copy(shard)  # the copy may be damaged: the shard itself is asked once more
        reason = "its bytes are not those that were indexed (SHA-256)" if len(found) == length else FAULTS[CUT]
        raise ImageError(self.location(i), reason)

    def refuse_lost(self, i: int) -> Shard:
        """The shard of an image; raises `ImageError` for an image of which it is known that it cannot be read."""
        row = self.rows[i]
        columns = self.shard_index.columns
        shard = self.shard_index.shards[columns["shard"][row]]
        if fault := int(columns["fault"][row]):
            raise ImageError(self.location(i), FAULTS[fault])
        if shard.size < 0:
            raise ImageError(self.location(i), "the shard is not there")
        if columns["offset"][row] + columns["length"][row] > shard.size:
            raise ImageError(self.location(i), FAULTS[CUT])
        return shard

    def byte_sizes(self) -> np.ndarray:
        """As the index says; -1 where the shard is not there, or not as long."""
        offset, length, shard, fault = (
            self.shard_index.columns[c][self.rows] for c in ("offset", "length", "shard", "fault")
        )
        ends = np.array([shard.size for shard in self.shard_index.shards], dtype=np.int64)[shard]
        return np.where((offset + length > ends) | (fault > 0), -1, length)

    def sha256(self, places: np.ndarray) -> np.ndarray:
        """As the index says; what is read is held to it."""
        return self.shard_index.columns["sha256"][self.rows[places]]

    def cache_key(self, i: int) -> tuple[str, int, int]:
        """Another if the shard was written to since, or the image is another."""
        shard = self.refuse_lost(i)
        row = self.rows[i]
        known = hashlib.sha256(shard.stamp.encode() + self.shard_index.columns["sha256"][row].tobytes()).digest()
        return self.location(i), int(self.shard_index.columns["length"][row]), int.from_bytes(known[:7], "big")

    def read_size(self, i: int) -> tuple[int, int]:
        """As its header says, of which the first bytes are read; all of them where those do not say."""
        row = self.rows[i]
        shard, start = self.refuse_lost(i), int(self.shard_index.columns["offset"][row])
        try:
            head = read_range(shard, start, min(int(self.shard_index.columns["length"][row]), HEAD))
            return read_size(BytesIO(head), self.location(i))
        except (ImageError, OSError):  # more is needed, or it cannot be read, which the whole of it says better
            return super().read_size(i)

    def take(self, places: np.ndarray) -> "ShardImages":
        """The images at these places; the index is shared."""
        return replace(self, rows=self.rows[places])


def list_shards(address: str | Path) -> Source:
    """The images of tar shards, by split; shards without an index of ours are read once for one, kept in the cache.

    Raises `UsageError` where there are none, `VitrailError` where an index is damaged or a file is no shard.
    """
    index = index_of(str(address))
    columns = index.columns
    splits = {}
    numbers, first = np.unique(columns["split"], return_index=True)
    for number in numbers[np.argsort(first)].tolist():
        rows = np.flatnonzero(columns["split"] == number)
        labels = Categorical(index.classes, columns["label"][rows])
        splits[SPLITS[number]] = Listing(ShardImages(index, rows, index.channels), index.names.take(rows), labels)
    if not splits and not index.lost:
        raise VitrailError(f"{address} has no images", "a sample is KEY.jpg (or .png, ...) with KEY.cls or KEY.json")
    if "all" in splits and len(splits) > 1:
        raise VitrailError(
            f"{address} has shards of {' and '.join(s for s in splits if s != 'all')} and shards of no split",
            "name them all after their split, or read them by a pattern",
        )
    counts = np.bincount(columns["shard"], minlength=len(index.shards)).tolist()
    missing = [
        f"there is no shard {shard.address}, which holds {n} images"
        for shard, n in zip(index.shards, counts, strict=True)
        if shard.size < 0
    ]
    return Source(
        index.name,
        splits,
        notes=list(index.notes),
        can_flip=index.flippable,
        channels=index.channels,
        missing=missing,
        damaged=list(index.lost),
        hint="fetch it again, or go on without what it held with --skip-unreadable",
    )


def index_of(address: str) -> ShardIndex:
    """The index of all shards at an address."""
    name = shard_set_name(address)
    if not address.lower().endswith(".tar"):  # a folder
        found = own_index(address)
        files = [join_address(address, shard.address) for shard in found.shards] if found else list_tars(address)
        if found and not is_remote(address) and (more := sorted(set(list_tars(address)) - set(files))):
            strangers = (
                f"{address}: {len(more)} tar files are not in its index and left out, {Path(more[0]).name} first"
            )
            found = replace(found, notes=(*found.notes, strangers))
        if not files:
            raise UsageError(f"there are no tar files in {address}", "give a folder of shards, or a pattern of them")
        own = {address.rstrip("/") if is_remote(address) else str(local(address)): found}
    else:
        files = expand_address(address)
        own = {folder: own_index(folder) for folder in dict.fromkeys(map(parent_folder, files))}
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        shards = mark_cacheable(list(pool.map(stat_shard, files)))
    parts, strangers_too = known(own, shards)
    there = [shard for shard in strangers_too if shard.size >= 0]
    if not parts and not there:
        raise UsageError(
            f"there is no shard {address}", "give a folder of shards, or a pattern as shards-{000000..000009}.tar"
        )
    absent = tuple(f"there is no shard {shard.address}" for shard in strangers_too if shard.size < 0)
    parts += indexed_all(there)
    whole_set = concatenate_indices(name if len(parts) > 1 else parts[0].name if not there else name, parts)
    return replace(whole_set, lost=(*whole_set.lost, *absent))


def own_index(folder: str) -> ShardIndex | None:
    """The index that `vitrail shard` wrote into a folder, if there is one."""
    where = join_address(folder, INDEX_FILE)
    try:
        content = read_small_file(where, MAX_INDEX_BYTES)
    except OSError as error:
        raise VitrailError(f"{where} cannot be read: {error}") from None
    return None if content is None else parse_index(content, where)


def known(own: dict[str, ShardIndex | None], shards: Sequence[Shard]) -> tuple[list[ShardIndex], list[Shard]]:
    """What the folders' own indices say of these shards, and the shards that they do not know."""
    parts, strangers = [], list(shards)
    for folder, index in own.items():
        if index is None:
            continue
        full = replace(
            index, shards=tuple(replace(shard, address=join_address(folder, shard.address)) for shard in index.shards)
        )
        sizes = {shard.address: shard.size for shard in full.shards}
        mine = [shard for shard in strangers if shard.address in sizes]
        strangers = [shard for shard in strangers if shard.address not in sizes]
        if mine:
            part = select_shards(full, mine)
            changed = tuple(
                f"{shard.address} has {shard.size:,} bytes where its index says {sizes[shard.address]:,}: "
                "it is damaged, or another"
                for shard in mine
                if shard.size >= 0 and shard.size != sizes[shard.address]
            )
            parts.append(replace(part, lost=(*part.lost, *changed)))
    return parts, strangers


def indexed_all(shards: Sequence[Shard]) -> list[ShardIndex]:
    """The indices of shards that came without one: those kept from before, and new ones."""
    found = {shard: kept(shard) for shard in shards}
    new = [shard for shard, index in found.items() if index is None]
    if new:
        log(f"{len(new)} shard{'s are' if len(new) > 1 else ' is'} read once for an index")
    with progress_bar("reading shards", len(new)) as progress, ThreadPoolExecutor(2) as pool:
        for shard, index in zip(new, pool.map(index_tar, new), strict=True):
            keep(shard, index)
            found[shard] = index
            progress.advance()
    return [index for index in found.values() if index is not None]


def index_file(shard: Shard) -> Path:
    """Where the index of a shard without one is kept."""
    return cache_folder() / "shards" / f"{cache_key(shard)}.safetensors"


def kept(shard: Shard) -> ShardIndex | None:
    """The index of a shard as it is now, from an earlier time; None where there is none or it is damaged."""
    path = index_file(shard)
    if not shard.stamp:  # nothing would say that it has changed
        return None
    try:
        index = parse_index(path.read_bytes(), str(path))
    except (OSError, VitrailError):
        return None
    return replace(index, shards=(shard,)) if len(index.shards) == 1 else None


def keep(shard: Shard, index: ShardIndex) -> None:
    """Keeps an index for the next time, unless something in the shard is lost; without a cache nothing else is."""
    if index.lost or not shard.stamp:
        return
    try:
        save_index(replace(index, shards=(Shard("shard.tar", shard.size),)), index_file(shard))
    except VitrailError as error:
        log(f"the index is not kept: {error.sentence}")
