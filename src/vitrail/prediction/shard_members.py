"""Images in tar shards as entries of a listing: any process can read one without the index."""

from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

import numpy as np

from vitrail.data.shards import list_shards
from vitrail.data.shards.images import ShardImages
from vitrail.data.shards.index import ShardIndex, empty_columns
from vitrail.data.shards.storage import Shard, is_remote
from vitrail.data.strings import StringArray
from vitrail.data.walk import log_left_out
from vitrail.errors import VitrailError


class ShardMember(NamedTuple):
    """An image in a shard, with its row of the index."""

    shard: str
    shard_size: int
    shard_version: str
    offset: int
    length: int
    sha256: str
    fault: int


def list_shard_members(address: str) -> Iterator[tuple[str, ShardMember]]:
    """Yields the location and the member of every image in a set of shards, in the order on disk.

    Raises `VitrailError` if a shard without an index is missing or damaged: its images are not known.
    """
    source = list_shards(address)
    if source.damaged:
        raise VitrailError(source.damaged[0], source.hint)
    log_left_out(source.left_out)
    for images in (listing.pixels for listing in source.splits.values()):
        assert isinstance(images, ShardImages)
        shards, columns = images.shard_index.shards, images.shard_index.columns
        order = np.lexsort((columns["offset"][images.rows], columns["shard"][images.rows]))
        for i in map(int, order):
            row = images.rows[i]
            shard = shards[columns["shard"][row]]
            offset, length, fault = (int(columns[name][row]) for name in ("offset", "length", "fault"))
            digest = columns["sha256"][row].tobytes().hex()
            member = ShardMember(shard.address, shard.size, shard.version, offset, length, digest, fault)
            yield images.location(i), member


def read_shard_member(location: str, member: ShardMember) -> BytesIO:
    """Reads the bytes of an image and checks their SHA-256; raises `ImageError`."""
    columns = empty_columns(1)
    for name in ("offset", "length", "fault"):
        columns[name][0] = getattr(member, name)
    columns["sha256"][0] = np.frombuffer(bytes.fromhex(member.sha256), np.uint8)
    shard = Shard(member.shard, member.shard_size, member.shard_version, cacheable=is_remote(member.shard))
    names = StringArray.from_strings([location.removeprefix(f"{member.shard}:")])
    return BytesIO(ShardImages(ShardIndex("", (shard,), (), columns, names), np.zeros(1, np.int64)).read_bytes(0))
