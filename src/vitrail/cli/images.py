"""The images that a user names: files, folders with all images below them, tar shards, tables of paths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vitrail.classifier import BaseClassifier
from vitrail.console import log
from vitrail.data.bands import Channels
from vitrail.data.decode import GRAY_16_BIT, ImageError, ImageHeader, ImageUnreachable, decode_with_header
from vitrail.data.image_batches import ImageBatch, read_batches
from vitrail.data.pixel_range import describe_over_8_bits
from vitrail.data.walk import Omissions, check_utf8_name, log_left_out, no_images, walk_images
from vitrail.errors import VitrailError
from vitrail.image_predictions import Predictions
from vitrail.prediction.entry import open_file
from vitrail.prediction.shard_members import ShardMember, list_shard_members
from vitrail.prediction.sources import is_shard_source, is_table_source, read_path_columns, translate_read_errors


@dataclass(frozen=True)
class InputImage:
    """An image by its path. The path of one in a tar shard is SHARD:NAME, of one of several files that of the first."""

    path: str
    member: ShardMember | None = None
    others: tuple[str, ...] = ()  # the further files

    def read(self, channels: Channels) -> Tensor:
        """Returns pixels (C, h, w); raises `ImageError`."""
        return self.read_with_header(channels)[0]

    def read_with_header(self, channels: Channels) -> tuple[Tensor, ImageHeader]:
        """Returns what `read` returns, and the header."""
        return decode_with_header(open_file(self.path, self.member, self.others, channels), channels, self.path)


def list_input_images(sources: Sequence[str]) -> list[InputImage]:
    """Returns the images in order: of files, folders, tar shards and tables of paths.

    Raises `UsageError` for a folder without images, `VitrailError` for missing shards, and for a row without a path.
    """
    images: list[InputImage] = []
    for source in sources:
        if is_shard_source(source):
            members = translate_read_errors(source, list_shard_members(source))
            images += [InputImage(path, member) for path, member in members]
        elif is_table_source(source):
            rows = translate_read_errors(source, read_path_columns(Path(source)))
            images += [InputImage(path, None, tuple(others)) for path, *others in rows]
        else:
            images += [InputImage(str(path)) for path in list_input_files([source])]
    return images


def list_input_files(sources: Sequence[str]) -> list[Path]:
    """Returns the image files in order, and prints the files that a folder leaves out.

    Raises `UsageError` for a folder without images, `VitrailError` for a name that is not UTF-8 and for a folder that
    cannot be listed.
    """
    files: list[Path] = []
    for source in sources:
        check_utf8_name("the command line", source)
        path = Path(source)
        if not path.is_dir():
            files.append(path)
            continue
        omissions = Omissions()
        below = walk_images(path, omissions)
        if omissions.unreachable:
            raise VitrailError(omissions.unreachable[0], "change its permissions")
        if not below:
            raise no_images(path, omissions)
        log_left_out(omissions.describe(path))
        files += below
    return files


def predict_input_images(
    classifier: BaseClassifier, images: Sequence[InputImage], batch_size: int, top: int = 1
) -> Predictions:
    """Returns the predictions for the images; those that cannot be read have errors. Warns of more than 8 bits."""
    return classifier.predict_batches(read_input_batches(classifier, images, batch_size), top)


def read_input_batches(
    classifier: BaseClassifier, images: Sequence[InputImage], batch_size: int
) -> Iterator[ImageBatch]:
    """Yields the images in batches of the model's size, with a progress bar; warns of more than 8 bits at the end."""
    over_8_bits: list[str] = []

    def read(image: InputImage, name: str) -> Tensor:
        try:
            image_CHW, header = image.read_with_header(classifier.preprocess.source_channels)
        except ImageUnreachable as error:  # the other images keep their rows
            raise ImageError(error.name, error.reason) from None
        pixels_CHW = classifier.read_image(image_CHW)
        if header.color_type == GRAY_16_BIT:
            over_8_bits.append(image.path)
        return pixels_CHW

    yield from read_batches(
        images,
        read,
        batch_size=batch_size,
        on_error="skip",
        progress="predicting",
        path_of=lambda image: image.path,
    )
    if over_8_bits:
        log(f"warning: {describe_over_8_bits(len(over_8_bits), over_8_bits[0])}")
