"""Tar shards -> a source: the images of each split with their names and labels."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitrail.console import log, progress_bar
from vitrail.data.formats import is_image_name
from vitrail.data.labels import Categorical, LabelSets, Numbers
from vitrail.data.shards.address import expand_address, join_address, parent_folder
from vitrail.data.shards.cache import cache_key, copies_folder, mark_cacheable
from vitrail.data.shards.images import ShardImages
from vitrail.data.shards.index import INDEX_FILE, SPLITS, ShardIndex, concatenate_indices, select_shards
from vitrail.data.shards.index_file import MAX_INDEX_BYTES, parse_index, parse_texts, save_index
from vitrail.data.shards.storage import Shard, is_remote, list_tars, local_path, read_small_file, stat_shard
from vitrail.data.shards.tar_index import index_tar
from vitrail.data.source import LeftOut, Listing, Source, name_of_data
from vitrail.data.walk import count
from vitrail.errors import UsageError, VitrailError

STAT_THREADS = 16
READ_THREADS = 2
DEFAULT_CHANNELS = 3  # if no index has them, and the images have no bands
READER_VERSION = 4  # changes when `index_tar` finds other images in a shard, so that cached indices are made again


def list_shards(address: str | Path) -> Source:
    """Lists the images of tar shards by split.

    Shards without an index of ours are read once to make one, which is cached. Raises `UsageError` if there are no
    shards, `VitrailError` if an index is damaged or a file is not a shard.
    """
    index = load_index(str(address))
    splits = divide_by_split(index)
    left_out = [*index.left_out, *describe_images_beside(str(address))]
    if not splits and not index.damaged:
        raise VitrailError(f"{address} has no images", "a sample is KEY.jpg (or .png, ...) with KEY.cls or KEY.json")
    if "all" in splits and len(splits) > 1:
        raise VitrailError(
            f"{address} has shards of {' and '.join(s for s in splits if s != 'all')} and shards without a split",
            "name all of them after their split, or select some with a pattern",
        )
    counts = np.bincount(index.columns["shard"], minlength=len(index.shards)).tolist()
    missing = [
        f"there is no shard {shard.address}, which has {n} images"
        for shard, n in zip(index.shards, counts, strict=True)
        if shard.size < 0
    ]
    return Source(
        index.name,
        splits,
        left_out=left_out,
        can_flip=index.can_flip,
        channels=index.channels or DEFAULT_CHANNELS,
        missing=missing,
        damaged=list(index.damaged),
        hint="fetch it again, or skip its images with --skip-unreadable",
    )


def describe_images_beside(address: str) -> list[LeftOut]:
    """Returns a sentence on image files in a folder of shards and in its folders of shards, which are not read."""
    if is_remote(address) or not local_path(address).is_dir():
        return []
    folders = {local_path(address), *(Path(file).parent for file in list_tars(address))}
    images = [path for folder in sorted(folders) for path in sorted(folder.iterdir()) if is_image_name(path.name)]
    sentence = f"{address}: {count(len(images), 'image')} beside the tar files"
    return [LeftOut(f"{sentence}, first {images[0].name}", len(images))] if images else []


def divide_by_split(index: ShardIndex) -> dict[str, Listing]:
    """Returns a listing per split, in the order in which the splits first occur."""
    splits = {}
    numbers, first_rows = np.unique(index.columns["split"], return_index=True)
    for number in numbers[np.argsort(first_rows)].tolist():
        rows = np.flatnonzero(index.columns["split"] == number)
        codes = index.columns["label"][rows]
        images = ShardImages(index, rows, index.channels or DEFAULT_CHANNELS)
        groups = Categorical(index.groups, index.columns["group"][rows]) if index.groups else None
        splits[SPLITS[number]] = Listing(images, index.names.take(rows), make_labels(index, codes), groups)
    return splits


def make_labels(index: ShardIndex, codes: np.ndarray) -> Categorical:
    """Returns the labels with these codes: classes, sets of labels, or numbers."""
    if index.label_sets:
        return LabelSets(index.label_sets, codes)
    if index.number_names:
        numbers = np.array([parse_texts(text) for text in index.classes], dtype=np.float64)
        return Numbers(index.number_names, numbers, codes)
    return Categorical(index.classes, codes)


def load_index(address: str) -> ShardIndex:
    """Returns one index of all shards at an address: from index files, from the cache, or from the shards themselves.

    Raises as `list_shards` does.
    """
    if address.lower().endswith(".tar"):
        files = expand_address(address)
        indices = {folder: read_index_file(folder) for folder in dict.fromkeys(map(parent_folder, files))}
    else:
        files, indices = find_in_folder(address)
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        shards = mark_cacheable(list(pool.map(stat_shard, files)))
    parts, unindexed = match_shards(indices, shards)
    to_index = [shard for shard in unindexed if shard.size >= 0]
    if not parts and not to_index:
        raise UsageError(
            f"there is no shard {address}", "give a folder of shards, or a pattern such as shards-{000000..000009}.tar"
        )
    parts += index_shards(to_index)
    name = parts[0].name if len(parts) == 1 and not to_index else name_of_data(address)
    index = concatenate_indices(name, parts)
    absent = tuple(f"there is no shard {shard.address}" for shard in unindexed if shard.size < 0)
    return replace(index, damaged=(*index.damaged, *absent))


def find_in_folder(folder: str) -> tuple[list[str], dict[str, ShardIndex | None]]:
    """Returns the shards of a folder, those of its index file if it has one, and the index by folder."""
    index = read_index_file(folder)
    files = [join_address(folder, shard.address) for shard in index.shards] if index else list_tars(folder)
    if index and not is_remote(folder) and (others := sorted(set(list_tars(folder)) - set(files))):
        sentence = f"{folder}: {count(len(others), 'tar file')} not in its index, first {Path(others[0]).name}"
        index = replace(index, left_out=(*index.left_out, LeftOut(sentence, len(others))))
    if not files:
        raise UsageError(f"there are no tar files in {folder}", "give a folder of shards, or a pattern of them")
    return files, {folder.rstrip("/") if is_remote(folder) else str(local_path(folder)): index}


def read_index_file(folder: str) -> ShardIndex | None:
    """Returns the index that `vitrail shard` wrote into a folder, None if there is none."""
    address = join_address(folder, INDEX_FILE)
    try:
        content = read_small_file(address, MAX_INDEX_BYTES)
    except OSError as error:
        raise VitrailError(f"{address} cannot be read: {error}") from None
    return None if content is None else parse_index(content, address)


def match_shards(
    indices: dict[str, ShardIndex | None], shards: Sequence[Shard]
) -> tuple[list[ShardIndex], list[Shard]]:
    """Selects these shards from the indices of their folders; also returns the shards that no index has."""
    parts, unindexed = [], list(shards)
    for folder, index in indices.items():
        if index is None:
            continue
        absolute = tuple(replace(shard, address=join_address(folder, shard.address)) for shard in index.shards)
        sizes = {shard.address: shard.size for shard in absolute}
        indexed = [shard for shard in unindexed if shard.address in sizes]
        unindexed = [shard for shard in unindexed if shard.address not in sizes]
        if indexed:
            part = select_shards(replace(index, shards=absolute), indexed)
            changed = tuple(
                f"{shard.address} has {shard.size:,} bytes where its index says {sizes[shard.address]:,}: "
                "it is damaged, or another file"
                for shard in indexed
                if shard.size >= 0 and shard.size != sizes[shard.address]
            )
            parts.append(replace(part, damaged=(*part.damaged, *changed)))
    return parts, unindexed


def index_shards(shards: Sequence[Shard]) -> list[ShardIndex]:
    """Returns an index per shard, from the cache or by reading the shard, which fills the cache."""
    indices = {shard: load_cached_index(shard) for shard in shards}
    new = [shard for shard, index in indices.items() if index is None]
    if new:
        log(f"{len(new)} shard{'s are' if len(new) > 1 else ' is'} read once to make an index")
    with progress_bar("reading shards", len(new)) as progress, ThreadPoolExecutor(READ_THREADS) as pool:
        for shard, index in zip(new, pool.map(index_tar, new), strict=True):
            save_cached_index(shard, index)
            indices[shard] = index
            progress.advance()
    return [index for index in indices.values() if index is not None]


def cached_index_path(shard: Shard) -> Path:
    return copies_folder() / f"{cache_key(shard)}-{READER_VERSION}.safetensors"


def load_cached_index(shard: Shard) -> ShardIndex | None:
    """Returns the cached index of this version of a shard; None if there is none, or a damaged one."""
    path = cached_index_path(shard)
    if not shard.version:  # a change would go unnoticed
        return None
    try:
        index = parse_index(path.read_bytes(), str(path))
    except (OSError, VitrailError):
        return None
    return replace(index, shards=(shard,)) if len(index.shards) == 1 else None


def save_cached_index(shard: Shard, index: ShardIndex) -> None:
    """Caches an index, unless its shard is damaged or has no version; without a cache it only logs a line."""
    if index.damaged or not shard.version:
        return
    try:
        save_index(replace(index, shards=(Shard("shard.tar", shard.size),)), cached_index_path(shard))
    except VitrailError as error:
        log(f"the index is not cached: {error.sentence}")
