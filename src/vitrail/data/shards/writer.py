"""Writes a source as tar shards in the WebDataset layout, with an index.

A sample is three members: KEY.jpg (the bytes of the image), KEY.cls (its class index) and KEY.json (the names of its
class, of the image, and of its group if there are groups); with several labels per image, or with numbers, there is no
KEY.cls, and KEY.json has them. An image of several files, or one in memory with bands, is KEY.npy. Keys are
numbers, because a dot in a name would end the key. Members have no times or owners: the same source gives the same
shards to the last bit.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vitrail.data.band_files import NPY_MAGIC, write_npy
from vitrail.data.bands import Bands, BandsError, Channels
from vitrail.data.decode import ImageError
from vitrail.data.encoded import EncodedImages
from vitrail.data.formats import (
    ARRAY_EXTENSION,
    DICOM_EXTENSIONS,
    EXTENSIONS,
    EXTENSIONS_OF_FORMAT,
    extension_of_format,
    is_dicom,
    readable_formats,
)
from vitrail.data.groups import has_groups
from vitrail.data.labels import LabelSets, Numbers
from vitrail.data.randomness import epoch_permutation
from vitrail.data.shards.index import INDEX_FILE, MAX_IMAGE_BYTES, SPLITS, ShardIndex, empty_columns
from vitrail.data.shards.index_file import parse_texts, save_index
from vitrail.data.shards.storage import Shard
from vitrail.data.source import Listing, Source
from vitrail.data.strings import StringArray
from vitrail.errors import UsageError, VitrailError
from vitrail.files import check_free_space, check_new_folder, write_folder_atomically

MIB = 1 << 20
DEFAULT_SHARD_MIB = 256  # large enough to stream, small enough to download again
BLOCK, RECORD = 512, 10240  # bytes of a tar file
OVERHEAD = 7 * BLOCK  # of a sample: three headers, two small members, padding


@dataclass
class ShardSummary:
    """What was written."""

    out: str
    images: int = 0
    bytes: int = 0
    shards: dict[str, int] = field(default_factory=dict)  # per split
    splits: dict[str, int] = field(default_factory=dict)  # images per split
    classes: int = 0
    formats: dict[str, int] = field(default_factory=dict)  # images per file format
    unreadable: list[str] = field(default_factory=list)  # skipped images


@dataclass(frozen=True)
class EncodedSample:
    """An image with its label, ready to be written."""

    key: str
    extension: str
    content: bytes
    label: str
    label_index: int
    name: str
    labels: tuple[str, ...] | None = None  # of an image with several; then `label_index` is that of the set
    numbers: dict[str, float] = field(default_factory=dict)  # of an image with numbers; then that of their text
    group: str | None = None


def write_shards(
    source: Source,
    out: Path,
    *,
    shard_mib: float = DEFAULT_SHARD_MIB,
    images_per_shard: int | None = None,
    seed: int | None = 0,
    skip_unreadable: bool = False,
    on_images: Callable[[int], object] = lambda images: None,
) -> ShardSummary:
    """Writes the folder `out`: SPLIT-000000.tar (or shards-000000.tar), ... and index.safetensors.

    A shard has at most `shard_mib` MiB and `images_per_shard` images. `seed` shuffles the images in the shards, so that
    a reader that streams them sees mixed classes; None keeps their order. The index always has the order of the source.
    `on_images` is called with the number of images done. The folder is written atomically. Raises `UsageError` if `out`
    exists, `ImageError` for a missing file (skipped with `skip_unreadable`), `VitrailError` if the disk is too small.
    """
    if shard_mib <= 0 or (images_per_shard is not None and images_per_shard < 1):
        raise UsageError("a shard has at least one image", "use a larger --shard-size-mib or --images-per-shard")
    check_new_folder(out)
    check_free_space(out, count_bytes(source), "choose another disk")
    with write_folder_atomically(out) as folder:
        max_images = images_per_shard or np.iinfo(np.int64).max
        writer = _ShardWriter(folder, source, int(shard_mib * MIB), max_images, skip_unreadable, on_images)
        for split, listing in source.splits.items():
            writer.write_split(split, listing, seed)
        summary = writer.finish()
    summary.out = str(out)
    return summary


def count_bytes(source: Source) -> int:
    """Estimates the size of the shards of encoded images; 0 for images in memory."""
    encoded = [listing.pixels for listing in source.splits.values() if isinstance(listing.pixels, EncodedImages)]
    return sum(int(np.maximum(images.byte_sizes(), 0).sum()) + OVERHEAD * len(images) for images in encoded)


class _ShardWriter:
    """Writes shards and collects their index."""

    def __init__(
        self,
        folder: Path,
        source: Source,
        max_bytes: int,
        max_images: int,
        skip_unreadable: bool,
        on_images: Callable[[int], object],
    ):
        self.folder, self.source, self.max_bytes, self.max_images = folder, source, max_bytes, max_images
        self.skip_unreadable, self.on_images = skip_unreadable, on_images
        self.classes = ordered_classes(source)
        self.label_index_of = {label: i for i, label in enumerate(self.classes)}
        self.set_of = find_label_sets(source)
        self.number_names = find_number_names(source)
        self.groups = find_groups(source)
        self.group_code_of = {group: code for code, group in enumerate(self.groups)}
        self.columns = empty_columns(count_images(source))
        self.is_written = np.zeros(len(self.columns["shard"]), dtype=bool)
        self.shards: list[Shard] = []
        self.rows = 0
        self.summary = ShardSummary("", classes=count_classes(source))
        self.formats: Counter[str] = Counter()

    def write_split(self, split: str, listing: Listing, seed: int | None) -> None:
        """Writes the images of a split into shards of its own."""
        first_row, first_shard = self.rows, len(self.shards)
        self.rows += len(listing)
        stem = "shards" if split == "all" else split
        with ExitStack() as stack:
            tar: _TarWriter | None = None
            for i, sample in self._iter_samples(listing, seed):
                if tar and not self._fits(tar, sample):
                    self.shards.append(tar.close())
                    tar = None
                tar = tar or _TarWriter(self.folder, f"{stem}-{len(self.shards) - first_shard:06d}.tar", stack)
                self._add_row(first_row + i, tar.add_sample(sample), sample, SPLITS.index(split))
            if tar:
                self.shards.append(tar.close())
        self.summary.splits[split] = int(self.is_written[first_row : self.rows].sum())
        self.summary.shards[split] = len(self.shards) - first_shard

    def finish(self) -> ShardSummary:
        """Writes the index; raises `VitrailError` if no image could be read."""
        if not self.is_written.any():
            raise VitrailError(f"no image of {self.source.name} can be read", "vitrail check shows the reasons")
        names = StringArray.from_strings(name for listing in self.source.splits.values() for name in listing.names)
        rows = np.flatnonzero(self.is_written)
        if len(rows) < len(self.is_written):
            names = StringArray.from_strings(names.take(rows))
        index = ShardIndex(
            self.source.name,
            tuple(self.shards),
            self.classes,
            {name: column[rows] for name, column in self.columns.items()},
            names,
            channels=self.source.channels,
            can_flip=self.source.can_flip,
            label_sets=tuple(self.set_of.get(text, (text,)) for text in self.classes) if self.set_of else (),
            groups=self.groups,
            number_names=self.number_names,
        )
        save_index(index, self.folder / INDEX_FILE)
        self.summary.images = len(index)
        self.summary.bytes = sum(shard.size for shard in self.shards)
        self.summary.formats = dict(self.formats)
        return self.summary

    def _iter_samples(self, listing: Listing, seed: int | None) -> Iterator[tuple[int, EncodedSample]]:
        """Yields the readable images of a split in the order of its shards, each with its index in the listing."""
        order = range(len(listing)) if seed is None else epoch_permutation(len(listing), seed, 0).tolist()
        for key, i in enumerate(order):
            self.on_images(1)
            try:
                extension, content = encode_image(listing, i, self.source.channels)
            except ImageError as error:
                if not self.skip_unreadable:
                    raise
                self.summary.unreadable.append(error.name)
                continue
            label = listing.labels[i]
            label_index = self.label_index_of[label]
            labels = self.set_of.get(label)
            numbers = dict(zip(self.number_names, parse_texts(label), strict=True)) if self.number_names else {}
            name = listing.names[i]
            group = listing.groups[i] if self.groups and listing.groups is not None else None
            yield i, EncodedSample(f"{key:09d}", extension, content, label, label_index, name, labels, numbers, group)

    def _fits(self, tar: "_TarWriter", sample: EncodedSample) -> bool:
        return tar.images < self.max_images and tar.bytes + len(sample.content) + 6 * BLOCK <= self.max_bytes

    def _add_row(self, row: int, offset: int, sample: EncodedSample, split: int) -> None:
        """Adds an image of the current shard to the index."""
        values = {
            "shard": len(self.shards),
            "offset": offset,
            "length": len(sample.content),
            "label": sample.label_index,
            "split": split,
            "group": 0 if sample.group is None else self.group_code_of[sample.group],
        }
        for column, value in values.items():
            self.columns[column][row] = value
        self.columns["sha256"][row] = np.frombuffer(hashlib.sha256(sample.content).digest(), dtype=np.uint8)
        self.is_written[row] = True
        self.formats[sample.extension] += 1


class _TarWriter:
    """Writes a shard; `stack` closes its file after an error."""

    def __init__(self, folder: Path, name: str, stack: ExitStack):
        self.name = name
        self.file = stack.enter_context((folder / name).open("xb"))
        self.bytes = self.images = 0

    def add_sample(self, sample: EncodedSample) -> int:
        """Writes the members of a sample; returns the offset of the image."""
        label = {"label": sample.label} if sample.labels is None else {"labels": sample.labels}
        numbers = {"numbers": sample.numbers} if sample.numbers else {}
        group = {} if sample.group is None else {"group": sample.group}
        document = json.dumps({**label, **numbers, **group, "name": sample.name}, ensure_ascii=False)
        offset = self.add_member(f"{sample.key}.{sample.extension}", sample.content)
        if sample.labels is None and not sample.numbers:
            self.add_member(f"{sample.key}.cls", str(sample.label_index).encode())
        self.add_member(f"{sample.key}.json", document.encode(errors="replace"))
        self.images += 1
        return offset

    def add_member(self, name: str, content: bytes) -> int:
        """Writes a member; returns the offset of its content."""
        header = tarfile.TarInfo(name)
        header.size = len(content)
        offset = self.bytes + BLOCK
        padding = b"\0" * (-len(content) % BLOCK)
        self.file.write(header.tobuf(tarfile.USTAR_FORMAT))
        self.file.write(content)
        self.file.write(padding)
        self.bytes += BLOCK + len(content) + len(padding)
        return offset

    def close(self) -> Shard:
        """Writes the end mark and waits until the file is on the disk."""
        end = b"\0" * (2 * BLOCK)
        self.file.write(end + b"\0" * (-(self.bytes + len(end)) % RECORD))
        self.file.flush()
        os.fsync(self.file.fileno())
        size = self.file.tell()
        self.file.close()
        return Shard(self.name, size)


def ordered_classes(source: Source) -> tuple[str, ...]:
    """Returns the classes in the order that training gives them, then those of other splits only."""
    splits = sorted(source.splits, key=lambda split: split not in ("train", "all"))
    ordered: dict[str, None] = {}
    for split in splits:
        ordered |= dict.fromkeys(source.splits[split].labels.categories)
    return tuple(ordered)


def find_label_sets(source: Source) -> dict[str, tuple[str, ...]]:
    """Returns the labels in each text; empty if images have one class."""
    listings = [listing.labels for listing in source.splits.values() if isinstance(listing.labels, LabelSets)]
    return {text: names for labels in listings for text, names in zip(labels.categories, labels.sets, strict=True)}


def find_number_names(source: Source) -> tuple[str, ...]:
    """Returns the names of the numbers of images; none if images have classes or labels."""
    return next((each.labels.names for each in source.splits.values() if isinstance(each.labels, Numbers)), ())


def find_groups(source: Source) -> tuple[str, ...]:
    """Returns the names of the groups, sorted; none unless all images have a group."""
    if not has_groups(source):
        return ()
    listed = [each.groups for each in source.splits.values() if each.groups is not None]
    return tuple(sorted({group for groups in listed for group in groups.categories}))


def count_classes(source: Source) -> int:
    """Counts the classes or labels of all splits."""
    return len({name for listing in source.splits.values() for name in listing.labels.counts()})


def encode_image(listing: Listing, i: int, channels: Channels) -> tuple[str, bytes]:
    """Returns extension and bytes of an image: those of its file, or a PNG or an array of pixels in memory.

    Raises `ImageError`.
    """
    if not isinstance(listing.pixels, EncodedImages):
        if not isinstance(channels, Bands):
            return "png", encode_png(listing.pixels[i])
        try:
            return "npy", write_npy(listing.pixels[i].numpy().astype(channels.values))
        except BandsError as error:
            raise ImageError(listing.names[i], str(error)) from None
    content = listing.pixels.read_bytes(i)
    if len(content) > MAX_IMAGE_BYTES:
        reason = f"{len(content):,} bytes are more than the {MAX_IMAGE_BYTES:,} that an image in a shard may have"
        raise ImageError(listing.pixels.location(i), reason)
    extension = PurePosixPath(listing.names[i]).suffix.lower()
    if content.startswith(NPY_MAGIC) or extension == ARRAY_EXTENSION:  # an image of several files has another name
        return ARRAY_EXTENSION[1:], content
    if is_dicom(content):
        return DICOM_EXTENSIONS[0][1:], content
    if extension not in EXTENSIONS:
        return detect_extension(content)[1:], content
    return next(each[0] for each in EXTENSIONS_OF_FORMAT.values() if extension in each)[1:], content


def detect_extension(content: bytes) -> str:
    """Returns the extension of an image's format; ".png" for bytes that are not an image and stay unreadable."""
    try:
        with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
            return extension_of_format(image.format) or ".png"
    except Exception:  # Pillow raises nearly anything
        return ".png"


def encode_png(pixels_CHW: Tensor) -> bytes:
    array: np.ndarray[Any, Any] = pixels_CHW.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(file, "PNG")
    return file.getvalue()


def count_images(source: Source) -> int:
    """Counts the images of all splits."""
    return sum(map(len, source.splits.values()))


def mixed_formats_note(formats: Sequence[str]) -> str | None:
    """Returns a warning if there is more than one file format."""
    if len(formats) < 2:
        return None
    return f"images are {', '.join(sorted(formats))}: Hugging Face datasets needs shards of one format"
