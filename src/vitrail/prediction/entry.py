"""One image of a source, and its line in a listing."""

import json
from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple, Self

from vitrail.data.bands import Channels
from vitrail.data.stacks import read_stack
from vitrail.prediction.shard_members import ShardMember, read_shard_member


class Entry(NamedTuple):
    """An image by its path, size in bytes and time of change; both are -1 if there is no such file.

    The path of an image in a tar shard is SHARD:NAME; an image of several files has the path of the first.
    """

    path: str
    size: int
    modified: int
    member: ShardMember | None = None
    others: tuple[str, ...] = ()  # the further files of an image of several

    def to_line(self) -> str:
        return json.dumps(self if self.others else self[:4] if self.member else self[:3]) + "\n"

    @classmethod
    def from_line(cls, line: str | bytes) -> Self:
        path, size, modified, *rest = json.loads(line)
        member = ShardMember(*rest[0]) if rest and rest[0] else None
        return cls(path, size, modified, member, tuple(rest[1]) if len(rest) > 1 else ())

    def open(self, channels: Channels) -> str | BytesIO:
        """Returns what `open_file` returns."""
        return open_file(self.path, self.member, self.others, channels)


def open_file(path: str, member: ShardMember | None, others: Sequence[str], channels: Channels) -> str | BytesIO:
    """Returns the file from which `decode` reads an image; raises `ImageError`.

    That is the file at the path, a member of a shard, or an image of several files.
    """
    if member:
        return read_shard_member(path, member)
    return read_stack([path, *others], channels) if others else path
