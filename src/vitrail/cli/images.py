"""The images that a user names: files, folders with all images below them, tar shards."""

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
class InputImage:
    """An image by its path. The path of one in a tar shard is SHARD:NAME."""

    path: str
    member: ShardMember | None = None

    def read(self, channels: int) -> Tensor:
        """Returns uint8 pixels (C, h, w); raises `ImageError`."""
        return decode(read_shard_member(self.path, self.member) if self.member else self.path, channels, self.path)


def list_input_images(sources: Sequence[str]) -> list[InputImage]:
    """Returns the images in order.

    Raises `UsageError` for a folder without images, `VitrailError` for missing shards.
    """
    images: list[InputImage] = []
    for source in sources:
        if is_shard_source(source):
            members = translate_read_errors(source, list_shard_members(source))
            images += [InputImage(path, member) for path, member in members]
        else:
            images += [InputImage(str(path)) for path in list_input_files([source])]
    return images


def list_input_files(sources: Sequence[str]) -> list[Path]:
    """Returns the image files in order.

    Raises `UsageError` for a folder without images, `VitrailError` for a name that is not UTF-8.
    """
    files: list[Path] = []
    for source in sources:
        check_utf8_name("the command line", source)
        path = Path(source)
        if not path.is_dir():
            files.append(path)
            continue
        below, _ = walk_images(path)
        if not below:
            raise UsageError(f"the folder {path} has no images")
        files += below
    return files
