"""The images that a person names: files, folders with everything below them, tar shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vitrail.data.decode import decode
from vitrail.data.folder import check_utf8_name, walk_images
from vitrail.errors import UsageError
from vitrail.prediction.shard_members import ShardMember, list_shard_members, read_shard_member
from vitrail.prediction.sources import is_shard_source, translate_read_errors


@dataclass(frozen=True)
class Named:
    """An image by its path; one in a tar shard is called SHARD:NAME, and `member` says where it lies."""

    path: str
    member: ShardMember | None = None

    def read(self, channels: int) -> Tensor:
        """uint8 pixels (C, h, w); raises `ImageError`."""
        return decode(read_shard_member(self.path, self.member) if self.member else self.path, channels, self.path)


def named_images(words: Sequence[str]) -> list[Named]:
    """The images in order.

    Raises `UsageError` for a folder without images, `VitrailError` for shards that are not there.
    """
    found: list[Named] = []
    for word in words:
        if is_shard_source(word):
            found += [Named(path, member) for path, member in translate_read_errors(word, list_shard_members(word))]
        else:
            found += [Named(str(path)) for path in named_files([word])]
    return found


def named_files(words: Sequence[str]) -> list[Path]:
    """The files in order.

    Raises `UsageError` for a folder without images, `VitrailError` for a name that is not UTF-8.
    """
    found: list[Path] = []
    for word in words:
        check_utf8_name("the command line", word)
        path = Path(word)
        if not path.is_dir():
            found.append(path)
            continue
        below, _ = walk_images(path)
        if not below:
            raise UsageError(f"the folder {path} has no images")
        found += below
    return found
