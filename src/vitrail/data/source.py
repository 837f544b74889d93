"""What a source reader returns: images with names and labels, by split."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vitrail.data.bands import Bands, Channels, count_of, describe_channels
from vitrail.data.encoded import EncodedImages
from vitrail.data.geometry import to_gray, to_rgb
from vitrail.data.group_pattern import compile_pattern
from vitrail.data.images import Images, LazyImages, Pixels
from vitrail.data.labels import Categorical, Numbers, choose_task, convert_labels, find_groups
from vitrail.errors import UsageError, VitrailError
from vitrail.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TaskName

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
BRACES_AND_WILDCARDS = re.compile(r"\{.*\}|[*?]")
TRAILING_NUMBERS = re.compile(r"[-_.\d]+$")


@dataclass(frozen=True)
class Listing:
    """Images with a name and a label each, and possibly a group: of a patient, a video, a burst.

    A label is a class name, or the text of several labels (`LabelSets`) or of numbers (`Numbers`). The categories of
    classes, grades and groups are sorted, and each is that of an image.
    """

    pixels: Pixels
    names: Sequence[str]
    labels: Categorical
    groups: Categorical | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", self.labels.used())
        if self.groups is not None:
            object.__setattr__(self, "groups", self.groups.used())

    def __len__(self) -> int:
        return len(self.names)

    @property
    def task(self) -> TaskName:
        """The task that the labels are for."""
        return self.labels.task

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Listing":
        """Returns the images with these indices, in this order."""
        images = Images(self.pixels, self.names, np.zeros(len(self), dtype=np.int64), ()).subset(indices)
        rows = np.asarray(indices, dtype=np.int64)
        groups = None if self.groups is None else self.groups.take(rows)
        return Listing(images.pixels, images.names, self.labels.take(rows), groups)

    def rows(self) -> Iterator[str]:
        """Yields name, label, file size and group of each image, as the fingerprint of the source has them."""
        pixels = self.pixels
        sizes = pixels.byte_sizes() if isinstance(pixels, EncodedImages) else np.zeros(len(self), dtype=int)
        groups = [""] * len(self) if self.groups is None else map("\0{}".format, self.groups)
        for name, label, size, group in zip(self.names, self.labels, sizes, groups, strict=True):
            yield f"{name}\0{label}\0{size}{group}"

    def with_channels(self, channels: Channels) -> "Listing":
        """Returns the same images as gray (1), color (3) or bands; bands in memory stay as they are."""
        if isinstance(self.pixels, EncodedImages):
            return replace(self, pixels=self.pixels.with_channels(channels))
        if isinstance(channels, Bands):
            return self
        convert = to_rgb if channels == 3 else to_gray
        if isinstance(self.pixels, Tensor):
            return replace(self, pixels=convert(self.pixels))
        return replace(self, pixels=LazyImages(self.pixels, range(len(self)), convert))


@dataclass(frozen=True)
class LeftOut:
    """Something that a source leaves out."""

    sentence: str
    files: int = 0  # how many files of the source it is about


@dataclass(frozen=True)
class Source:
    """Listings by split: `train`, `validation` and `test`, or `all` if the source is not split."""

    name: str
    splits: dict[str, Listing]
    notes: list[str] = field(default_factory=list)  # sentences for the user, shown before training
    left_out: list[LeftOut] = field(default_factory=list)  # files, folders, splits or columns that are not used
    can_flip: bool = True
    channels: Channels = 3
    missing: list[str] = field(default_factory=list)  # sentences on files that a table lists but do not exist
    damaged: list[str] = field(default_factory=list)  # sentences on images or folders that cannot be listed
    hint: str = "paths are relative to the table"  # how to repair what is missing or damaged
    address: str = ""  # DATA as the user wrote it, or "python:" and a name
    digest: str = ""  # of the pixels of images that have no files
    is_table: bool = False  # whether labels are texts of a table, which may hold several labels
    empty_labels: list[str] = field(default_factory=list)  # sentences on images without a label

    @property
    def task(self) -> TaskName:
        """The task that the labels are for."""
        tasks = (listing.task for listing in self.splits.values())
        return next((task for task in tasks if task != SINGLE_LABEL), SINGLE_LABEL)

    @property
    def has_bands(self) -> bool:
        """Whether the images have channels whose values are kept."""
        return isinstance(self.channels, Bands)

    def with_channels(self, channels: Channels) -> "Source":
        """Returns the same images as gray (1), color (3) or bands.

        Raises `VitrailError` for images in memory that have other bands; files raise an error when they are read.
        """
        if channels == self.channels:
            return self
        if isinstance(channels, Bands) or isinstance(self.channels, Bands):
            for listing in self.splits.values():
                check_bands(listing.pixels, self.channels, channels)
        splits = {split: listing.with_channels(channels) for split, listing in self.splits.items()}
        return replace(self, splits=splits, channels=channels)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256, in hex, of the splits, names, labels, file sizes and groups of all images, in any order.

        A source from Python has a digest of its pixels instead of sizes. Rows are sorted in memory only if the source
        does not list them in order.
        """
        sha = hashlib.sha256()
        separator = b""
        for split, listing in sorted(self.splits.items()):
            rows = listing.rows()
            for row in rows if all(a <= b for a, b in pairwise(listing.rows())) else sorted(rows):
                sha.update(separator + f"{split}\0{row}".encode())
                separator = b"\n"
        sha.update(self.digest.encode())
        return sha.hexdigest()

    def with_task(self, task: str | None) -> "Source":
        """Returns the source with labels of a task: that which is given, else the one that its labels mean.

        A table whose labels have a ";" has several labels per image, and a note names it. Raises `VitrailError` if
        images have no class, or several, and the task needs one.
        """
        chosen = task or choose_task([each.labels for each in self.splits.values()], splits_texts=self.is_table)
        if chosen != MULTI_LABEL and self.empty_labels:
            raise VitrailError(self.empty_labels[0], "fill it in or remove the row")
        splits = {
            split: replace(each, labels=convert_labels(each.labels, chosen, each.names, self.address or self.name))
            for split, each in self.splits.items()
        }
        notes = self.notes
        if task is None and chosen == MULTI_LABEL:
            names = set().union(*(each.labels.counts() for each in splits.values()))
            what = f"an image has any number of {len(names)} labels"
            notes = [*notes, f"the task is {MULTI_LABEL}: {what} (--task {SINGLE_LABEL}: one class each)"]
        if task is None and chosen == REGRESSION:
            notes = [*notes, self.describe_numbers(splits)]
        return replace(self, splits=splits, notes=notes)

    def describe_numbers(self, splits: Mapping[str, Listing]) -> str:
        """Returns a note on the numbers of the splits.

        Raises `VitrailError` if they are whole numbers of columns that may be something else.
        """
        numbers = [each.labels for each in splits.values() if isinstance(each.labels, Numbers)]
        names = ", ".join(numbers[0].names)
        if not all(each.is_certain for each in numbers):
            raise VitrailError(
                f"{self.address} has no classes, and the numbers {names} are whole, so they may be classes",
                f"name a column of classes label, or predict the numbers with --task {REGRESSION}",
            )
        return f"the task is {REGRESSION}: the numbers of an image are {names}"

    def with_groups(self, pattern: str | None) -> "Source":
        """Returns the source with the groups that a pattern finds in the names of images; unchanged without one.

        The pattern is searched in the name, which is the path below the folder of the data; its capture group is the
        group. Raises `VitrailError` for a name that it does not match, and if the data has groups already.
        """
        if pattern is None:
            return self
        compiled = compile_pattern(pattern)
        if any(listing.groups is not None for listing in self.splits.values()):
            raise own_groups_error(self.address)
        splits = {
            split: replace(each, groups=find_groups(each.names, compiled, self.address))
            for split, each in self.splits.items()
        }
        return replace(self, splits=splits)

    def with_own_channels(self) -> "Source":
        """Returns the source with the channels that its files have; a note says so if they are not gray or color."""
        listing = next((self.splits[each] for each in ("train", "all", *self.splits) if each in self.splits), None)
        if listing is None or not len(listing) or not isinstance(listing.pixels, EncodedImages):
            return self
        channels = listing.pixels.find_channels()
        if not isinstance(channels, Bands):
            return self
        note = f"the images have {channels}, and their values are kept as they are"
        return replace(self.with_channels(channels), notes=[*self.notes, note])

    def find_split(self, split: str) -> str:
        """Returns the name of the source's split from which the images of `split` come."""
        if split in self.splits:
            return split
        return "all" if "all" in self.splits else "train"


def check_bands(pixels: Pixels, found: Channels, wanted: Channels) -> None:
    """Raises `VitrailError` if images in memory have other bands than those wanted.

    Decoded bands of float32 may come from files with values of any type.
    """
    if isinstance(pixels, EncodedImages):
        return
    is_decoded = not hasattr(pixels, "channels") and isinstance(found, Bands) and found.values == "float32"
    if is_decoded and isinstance(wanted, Bands) and count_of(found) == wanted.count and wanted.values != "uint8":
        return
    raise VitrailError(f"the images have {describe_channels(found)}, and not {describe_channels(wanted)}")


def find_unknown(listing: Listing, classes: Sequence[str]) -> list[str]:
    """Returns the labels that are not among the classes; of numbers, those that are missing.

    One number fits another one of any name.
    """
    names = listing.labels.classes
    if listing.task == REGRESSION:
        return [] if len(names) == len(classes) == 1 else [name for name in classes if name not in names]
    return sorted(set(names) - set(classes))


def encode_labels(listing: Listing, classes: tuple[str, ...], address: str, hint: str = "") -> Images:
    """Returns the images with labels as class indices, as a multi-hot array, or as numbers.

    Raises `VitrailError` for a label that is not one of the classes; `hint` is added to the error's hint.
    """
    unknown = find_unknown(listing, classes)
    if unknown and listing.task == REGRESSION:
        raise VitrailError(
            f"{address}: there is no number {', '.join(map(repr, unknown))}",
            f"the model predicts {', '.join(classes)}, and the data have {', '.join(listing.labels.classes)}",
        )
    if unknown:
        raise VitrailError(
            f"{address}: the class{'es' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))} "
            f"{'are' if len(unknown) > 1 else 'is'} not among the training classes",
            f"the classes are {', '.join(map(repr, classes[:20]))}{' ...' if len(classes) > 20 else ''}{hint}",
        )
    locations = listing.pixels.locations() if isinstance(listing.pixels, EncodedImages) else None
    labels = listing.labels.encode(classes)
    return Images(listing.pixels, listing.names, labels, classes, locations, listing.groups, listing.task)


def parse_split_name(text: str, location: str) -> str:
    """Returns train, validation or test for any usual spelling; raises `VitrailError` for another word."""
    try:
        return SPLIT_NAMES[text.strip().lower()]
    except KeyError:
        raise VitrailError(f"{location}: {text!r} is not a split", "use train, validation or test") from None


def name_of_data(data: Any) -> str:
    """Returns a short name for DATA, for the default folder of its run.

    It is that of the folder, file, set of shards or built-in data set, or of the class of an object of Python.
    """
    if isinstance(data, str | Path):
        return name_of_address(data)
    if isinstance(data, Mapping):
        data = next(iter(data.values()), ())
    data = getattr(data, "dataset", data)  # of a DataLoader
    if isinstance(data, tuple | list):
        images = data[0] if data else ()
        if not isinstance(images, Sequence) or not all(isinstance(image, str | Path) for image in images) or not images:
            return "arrays"
        return Path(os.path.commonpath([Path(image).absolute().parent for image in images])).name
    name = getattr(data, "name", None)
    return name if isinstance(name, str) else type(data).__name__.lower()


def name_of_address(address: str | Path) -> str:
    """Returns the name of a folder or file without its extension, or of a built-in data set.

    Shards are named after their files without numbers, or after their folder if that leaves nothing or a split's name.
    """
    text = BRACES_AND_WILDCARDS.sub("", str(address).removeprefix("file://"))
    path = Path(text).resolve() if Path(text).exists() else Path(text)
    if path.is_dir():
        return path.name or "data"
    if not (path.suffix == ".tar" or "://" in text or text != str(address)):
        return path.stem.strip() or "data"
    stem = TRAILING_NUMBERS.sub("", path.stem if path.suffix == ".tar" else path.name)
    return (stem if stem not in ("", "shards", *SPLIT_NAMES) else path.parent.name or stem).strip() or "shards"


def own_groups_error(address: str) -> UsageError:
    """Returns the error for a group pattern of data that has groups."""
    return UsageError(f"{address} has groups of its own", "leave out the group pattern")
