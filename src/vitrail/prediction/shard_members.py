"""Images in tar shards, for a listing: where each lies, so that any process can read it alone."""

from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

import numpy as np

from vitrail.data.shards import list_shards
from vitrail.data.shards.images import ShardImages
from vitrail.data.shards.index import ShardIndex, empty_columns
from vitrail.data.shards.storage import Shard, is_remote
from vitrail.data.strings import StringArray
from vitrail.errors import VitrailError


class ShardMember(NamedTuple):
    """An image in a shard, and what the index knows of it."""

    shard: str
    shard_size: int
    stamp: str
    offset: int
    length: int
    sha256: str
    fault: int


def list_shard_members(address: str) -> Iterator[tuple[str, ShardMember]]:
    """All images of a set of shards with their places, shard by shard as they lie there.

    Raises `VitrailError` where a shard is not there and nobody knows what it held.
    """
    found = list_shards(address)
    if found.damaged:
        raise VitrailError(found.damaged[0], found.hint)
    for images in (listing.pixels for listing in found.splits.values()):
        assert isinstance(images, ShardImages)
        columns = images.shard_index.columns
        order = np.lexsort((columns["offset"][images.rows], columns["shard"][images.rows]))
        for i in map(int, order):
            row = images.rows[i]
            shard = images.shard_index.shards[columns["shard"][row]]
            offset, length, fault = (int(columns[name][row]) for name in ("offset", "length", "fault"))
            digest = columns["sha256"][row].tobytes().hex()
            yield images.location(i), ShardMember(shard.address, shard.size, shard.stamp, offset, length, digest, fault)


def read_shard_member(path: str, member: ShardMember) -> BytesIO:
    """The bytes of an image in a shard, held to the index; raises `ImageError`."""
    columns = empty_columns(1)
    for name in ("offset", "length", "fault"):
        columns[name][0] = getattr(member, name)
    columns["sha256"][0] = np.frombuffer(bytes.fromhex(member.sha256), np.uint8)
    shard = Shard(member.shard, member.shard_size, member.stamp, cacheable=is_remote(member.shard))
    index = ShardIndex("", (shard,), (), columns, StringArray.from_strings([path.removeprefix(f"{member.shard}:")]))
    return BytesIO(ShardImages(index, np.zeros(1, np.int64)).read_bytes(0))
