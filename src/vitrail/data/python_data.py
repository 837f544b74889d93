"""Data from Python: arrays, Datasets, DataLoaders and Hugging Face data sets, as a source."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from vitrail.console import progress_bar
from vitrail.data.addresses import PYTHON_PREFIX
from vitrail.data.bands import Bands, Channels, as_channels, describe_channels
from vitrail.data.decode import ImageError
from vitrail.data.encoded import EncodedImages, ImageFiles
from vitrail.data.hf import list_split
from vitrail.data.image_input import find_array_channels, to_pixels
from vitrail.data.images import Images
from vitrail.data.labels import Categorical, Grades, LabelSets, Numbers, categorize
from vitrail.data.python_labels import key_of, label_names
from vitrail.data.source import SPLIT_NAMES, LeftOut, Listing, Source, name_of_data
from vitrail.data.split import Splits
from vitrail.data.strings import NumberedNames, StringArray
from vitrail.errors import UsageError, VitrailError
from vitrail.machine import GIB
from vitrail.tasks import GRADES, MULTI_LABEL, REGRESSION

if TYPE_CHECKING:
    import datasets

Items: TypeAlias = Sequence[Any] | np.ndarray | Tensor
Arrays: TypeAlias = tuple[Items, Items] | tuple[Items, Items, Items]  # images, labels and possibly groups
Part: TypeAlias = Union["Dataset[Any]", "DataLoader[Any]", "datasets.Dataset", Images, Arrays]
Data: TypeAlias = str | Path | Part | Splits | Source | Mapping[str, Part]

NAME_DIGITS = 7
LABEL_ATTRIBUTES = ("targets", "labels")  # of the map-style data sets of torchvision and others
DIGEST_IMAGES = 16  # of a data set that are hashed, evenly spaced, so that another one is noticed on resume
MAX_ITERABLE_BYTES = 8 * GIB  # of pixels that an iterable data set may fill
KINDS = (
    "an address, a Dataset, a DataLoader, a Hugging Face Dataset, a pair (images, labels) or "
    "(images, labels, groups), or a dict of these by split"
)


@dataclass(frozen=True)
class DatasetImages(Sequence[Tensor]):
    """The images of a map-style data set; each is converted to pixels (C, h, w) on access."""

    dataset: Any
    split: str
    channels: Channels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Tensor:  # type: ignore[override]
        return to_pixels(read_item(self.dataset, int(i), self.split)[0], self.channels, item_name(self.split, int(i)))


@dataclass(frozen=True)
class BandsInMemory(Sequence[Tensor]):
    """Values that were read, with the channels of their images."""

    pixels: list[Tensor]
    channels: Bands

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> Tensor:  # type: ignore[override]
        return self.pixels[i]


def read_python_data(data: Any) -> Source:
    """Returns the source of an object that holds labeled images.

    A dict has one object per split (`train`, `validation`, `test`); anything else is split as a folder would be. Raises
    `UsageError` for an object of another kind, `VitrailError` for images or labels that cannot be used.
    """
    if isinstance(data, Source):
        return data if data.address else replace(data, address=f"{PYTHON_PREFIX}{data.name}")
    if isinstance(data, Splits):
        listings = {name: list_images(images) for name, images in data.as_dict().items()}
        source = merge_listings(data.name, listings, [], [])
        return replace(source, channels=data.channels) if isinstance(data.channels, Bands) else source
    parts: Mapping[str, Any] = data if isinstance(data, Mapping) else {"all": data}
    notes: list[str] = []
    left_out: list[LeftOut] = []
    splits: dict[str, Listing] = {}
    for key, part in parts.items():
        split = "all" if key == "all" else SPLIT_NAMES.get(str(key).lower())
        if split is None:
            raise UsageError(f"data has no split {key!r}", "use train, validation and test")
        splits[split] = list_part(part, split, notes, left_out)
    return merge_listings(name_of_data(data), splits, notes, left_out)


def merge_listings(name: str, splits: dict[str, Listing], notes: list[str], left_out: list[LeftOut]) -> Source:
    """Returns the source of these splits, in color if any of them is; raises `VitrailError` if there are no images."""
    splits = {split: listing for split, listing in splits.items() if len(listing)}
    if not splits:
        raise VitrailError("data has no images", "give at least two labeled images of each of two classes")
    kinds = {count_channels(listing) for listing in splits.values()}
    digest = " ".join(filter(None, map(digest_listing, splits.values())))
    address = f"{PYTHON_PREFIX}{name}"
    source = Source(name, splits, notes=notes, left_out=left_out, channels=1, address=address, digest=digest)
    if any(isinstance(kind, Bands) for kind in kinds):
        return replace(source, channels=require_same(splits))
    if kinds == {1}:
        return source
    splits = {
        split: listing if count_channels(listing) == 3 else listing.with_channels(3)
        for split, listing in splits.items()
    }
    return replace(source, splits=splits, channels=3)


def require_same(splits: Mapping[str, Listing]) -> Channels:
    """Returns the channels of all splits; raises `VitrailError` if they differ."""
    (first, channels), *others = ((split, count_channels(listing)) for split, listing in splits.items())
    for split, other in others:
        if other != channels:
            kinds = f"{describe_channels(channels)} in {first}, {describe_channels(other)} in {split}"
            raise VitrailError(f"the images have {kinds}", "give all of them the same channels")
    return channels


def list_part(part: Any, split: str, notes: list[str], left_out: list[LeftOut]) -> Listing:
    """Lists the images of one split and appends to `notes` and `left_out`."""
    if isinstance(part, Images):
        return list_images(part)
    if is_hf_dataset(part):
        return list_split(name_of_data(part), split, part, notes, left_out)
    if isinstance(part, DataLoader):
        note_loader(part, notes)
        part = part.dataset
    if isinstance(part, tuple | list) and len(part) in (2, 3):
        images, labels, *groups = part
        return with_groups(list_arrays(images, labels, split=split), *groups, split=split)
    if isinstance(part, IterableDataset):
        note = "an iterable data set is read once into memory, so that every epoch has the same images"
        notes += [note] if note not in notes else []
        return list_iterable(part, split)
    if hasattr(part, "__getitem__") and hasattr(part, "__len__"):
        return list_dataset(part, split, notes)
    raise UsageError(f"data cannot be a {type(part).__name__}", f"give {KINDS}")


def with_groups(listing: Listing, groups: Any = None, *, split: str) -> Listing:
    """Returns the listing with a group for each image, as text; unchanged if `groups` is None."""
    if groups is None:
        return listing
    groups = groups.tolist() if isinstance(groups, np.ndarray | Tensor) else list(groups)
    if len(groups) != len(listing):
        raise VitrailError(
            f"there are {len(listing):,} images and {len(groups):,} groups in {split}", "give one group per image"
        )
    if any(group is None or not str(group).strip() for group in groups):
        raise VitrailError(f"a group of {split} is empty", "give every image a group, if only its own")
    return replace(listing, groups=categorize(groups))


def is_hf_dataset(data: Any) -> bool:
    """Returns whether this is a `datasets.Dataset`; raises `UsageError` for a streamed one."""
    if not type(data).__module__.startswith("datasets."):
        return False
    if not hasattr(data, "_fingerprint") or not hasattr(data, "select_columns"):
        raise UsageError("a streamed Hugging Face data set cannot be shuffled exactly", "load it without streaming")
    return hasattr(data, "data")


def note_loader(loader: DataLoader[Any], notes: list[str]) -> None:
    """Adds a note on the settings of a DataLoader that are not used."""
    note = "of the DataLoader, the data set is used; batches and their order are the recipe's"
    if loader.collate_fn is not default_collate:
        note += ", and its collate function is not called"
    notes += [note] if note not in notes else []


def list_images(images: Images) -> Listing:
    """Returns the images of vitrail's own type with class names as labels."""
    labels: Categorical
    if images.task == MULTI_LABEL:
        labels = LabelSets.from_multi_hot(images.labels, images.classes)
    elif images.task == REGRESSION:
        labels = Numbers.from_array(images.classes, images.labels)
    else:
        labels = (Grades if images.task == GRADES else Categorical)(images.classes, images.labels)
    groups = None if images.groups is None else categorize(images.groups)
    return Listing(images.pixels, images.names, labels, groups)


def list_arrays(images: Any, labels: Any, *, split: str) -> Listing:
    """Lists an array or tensor of images, or a sequence of them, with a label each.

    Labels are one per image, or several: a multi-hot array (n, Y), or lists of labels.

    NumPy arrays are (n, h, w) or (n, h, w, C), tensors (n, h, w) or (n, C, h, w), of uint8 or of floats from 0 to 1. A
    list has images of any kind that `Classifier.predict` takes; files of a list of paths are read when they are needed.
    """
    n = len(images)
    if n != len(labels):
        raise VitrailError(f"there are {n:,} images and {len(labels):,} labels in {split}", "give one label per image")
    names = label_names(labels, None, split)
    numbered = NumberedNames(f"{split}-", np.arange(n), NAME_DIGITS)
    if not n:
        return Listing([], [], categorize([]))
    if all_paths(images):
        return list_files(list(map(Path, images)), names)
    if isinstance(images, Sequence):
        pixels = DatasetImages(list(zip(images, labels, strict=True)), split, find_array_channels(images[0]))
        return Listing(pixels, numbered, names)
    if images.ndim not in (3, 4):
        raise VitrailError(f"the images of {split} have the shape {tuple(images.shape)}", "give (n, h, w, C)")
    if isinstance(images, Tensor) and images.ndim == 3:
        images = images[:, None]
    channels = find_array_channels(images[0])
    if isinstance(channels, Bands):  # whose type a tensor of floats would not tell
        return Listing(DatasetImages(list(zip(images, labels, strict=True)), split, channels), numbered, names)
    first = to_pixels(images[0], channels, item_name(split, 0))
    stacked = torch.empty(n, *first.shape, dtype=first.dtype)
    for i in range(n):
        stacked[i] = to_pixels(images[i], channels, item_name(split, i))
    return Listing(stacked, numbered, names)


def all_paths(images: Any) -> bool:
    """Returns whether the images are a list of file names."""
    return isinstance(images, Sequence) and all(isinstance(image, str | Path) for image in images)


def list_files(paths: list[Path], labels: Categorical) -> Listing:
    """Lists image files; their names are relative to the folder that they share."""
    root = os.path.commonpath([path.parent for path in paths])
    return Listing(ImageFiles(paths), [path.relative_to(root).as_posix() for path in paths], labels)


def list_dataset(dataset: Any, split: str, notes: list[str]) -> Listing:
    """Lists a map-style data set of pairs (image, label); its images are read when they are needed.

    Labels are taken from `dataset.targets` or `dataset.labels` if they are there; else every item is read once. Class
    names are `dataset.classes`, also of the data set of a `Subset`; image names are `dataset.names` and groups are
    `dataset.groups`, where these exist.
    """
    n = len(dataset)
    if not n:
        return Listing([], [], categorize([]))
    image, label = read_item(dataset, 0, split)
    channels = find_array_channels(image)
    pixels = DatasetImages(dataset, split, channels)
    if not torch.equal(pixels[0], to_pixels(image, channels)):
        note = (
            f"the data set gives another image at each reading of item 0 of {split}: its random transforms come before "
            "vitrail's augmentation, and a resumed run is not exact"
        )
        notes.append(note)
    labels = next((getattr(dataset, name) for name in LABEL_ATTRIBUTES if has_labels(dataset, name, label)), None)
    if labels is None:
        with progress_bar("reading labels", n) as progress:
            labels = [label]
            for i in range(1, n):
                labels.append(read_item(dataset, i, split)[1])
                progress.advance()
    names = getattr(dataset, "names", None)
    names = StringArray.from_strings(map(str, names)) if names is not None and len(names) == n else None
    listing = Listing(
        pixels,
        NumberedNames(f"{split}-", np.arange(n), NAME_DIGITS) if names is None else names,
        label_names(labels, find_classes(dataset), split),
    )
    return with_groups(listing, getattr(dataset, "groups", None), split=split)


def find_classes(dataset: Any) -> Sequence[str] | None:
    """Returns the class names of a data set, or of the one that a `Subset` is of; None if it has none."""
    while not hasattr(dataset, "classes") and isinstance(dataset, Subset):
        dataset = dataset.dataset
    return getattr(dataset, "classes", None)


def list_iterable(dataset: Iterable[Any], split: str) -> Listing:
    """Reads an iterable data set of pairs (image, label) into memory; raises `VitrailError` if it does not fit."""
    pixels: list[Tensor] = []
    labels: list[Any] = []
    n_bytes = 0
    channels: Channels = 0
    for i, item in enumerate(dataset):
        image, label = split_item(item, i, split)
        channels = channels or find_array_channels(image)
        pixels.append(to_pixels(image, channels, item_name(split, i)))
        labels.append(label)
        n_bytes += pixels[-1].nbytes
        if n_bytes > MAX_ITERABLE_BYTES:
            raise VitrailError(
                f"the iterable data set of {split} has more than {MAX_ITERABLE_BYTES // GIB} GiB of pixels",
                "write it as shards or files, or give a map-style data set",
            )
    numbered = NumberedNames(f"{split}-", np.arange(len(labels)), NAME_DIGITS)
    kept = BandsInMemory(pixels, channels) if isinstance(channels, Bands) else pixels
    return Listing(kept, numbered, label_names(labels, find_classes(dataset), split))


def read_item(dataset: Any, i: int, split: str) -> tuple[Any, Any]:
    """Returns the image and the label of an item; an error in the data set becomes an `ImageError` with its text."""
    try:
        item = dataset[i]
    except (MemoryError, ImageError):
        raise
    except Exception as error:
        raise ImageError(item_name(split, i), f"the data set raised {type(error).__name__}: {error}") from error
    return split_item(item, i, split)


def split_item(item: Any, i: int, split: str) -> tuple[Any, Any]:
    """Returns the image and the label of an item; raises `VitrailError` if it is not such a pair."""
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    kind = f"{type(item).__name__} of {len(item)}" if isinstance(item, tuple | list | dict) else type(item).__name__
    raise VitrailError(f"{item_name(split, i)} is a {kind}, not a pair (image, label)", "wrap the data set")


def item_name(split: str, i: int) -> str:
    return f"item {i} of {split}"


def has_labels(dataset: Any, name: str, first: Any) -> bool:
    """Returns whether an attribute of a data set has its labels: one for each item, the first of them equal."""
    labels = getattr(dataset, name, None)
    try:
        return labels is not None and len(labels) == len(dataset) and key_of(labels[0]) == key_of(first)
    except (TypeError, KeyError, IndexError, VitrailError):
        return False


def count_channels(listing: Listing) -> Channels:
    """Returns the channels of the images of a listing."""
    channels: Channels | None = getattr(listing.pixels, "channels", None)
    if channels is not None:
        return channels
    first = listing.pixels[0]
    return as_channels(Bands(len(first), "uint8" if first.dtype == torch.uint8 else "float32"))


def digest_listing(listing: Listing) -> str:
    """Returns a digest of the pixels: of all if they are in memory, else of some images, evenly spaced.

    Encoded images have none: the fingerprint has their sizes.
    """
    if isinstance(listing.pixels, EncodedImages):
        return ""
    sha = hashlib.sha256()
    if isinstance(listing.pixels, Tensor):
        sha.update(listing.pixels.numpy().tobytes())
    else:
        n = len(listing)
        for i in np.linspace(0, n - 1, min(n, DIGEST_IMAGES)).astype(int).tolist():
            sha.update(listing.pixels[i].numpy().tobytes())
    return sha.hexdigest()
