"""One image of a source, and its line in a listing."""

import json
from typing import NamedTuple, Self

from vitrail.prediction.shard_members import ShardMember


class Entry(NamedTuple):
    """An image by its path, size in bytes and time of change; both are -1 if there is no such file.

    The path of an image in a tar shard is SHARD:NAME.
    """

    path: str
    size: int
    modified: int
    member: ShardMember | None = None

    def to_line(self) -> str:
        return json.dumps(self if self.member else self[:3]) + "\n"

    @classmethod
    def from_line(cls, line: str | bytes) -> Self:
        path, size, modified, *member = json.loads(line)
        return cls(path, size, modified, ShardMember(*member[0]) if member else None)
