"""Opens DATA as training, validation and test images that share one class order.

A source reader lists the images at an address. A split that the source lacks is drawn from the others. The classes are
those of the training images, in alphabetical order.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from vitrail.data.builtin import BUILTIN_DATASETS, read_builtin_dataset
from vitrail.data.fingerprint import compute_fingerprint
from vitrail.data.folder import read_image_folder
from vitrail.data.hf import HF_PREFIX, read_hf_dataset
from vitrail.data.images import Images
from vitrail.data.shards import is_shards, list_shards
from vitrail.data.source import Source, encode_labels
from vitrail.data.split import complete_splits
from vitrail.data.table import TABLE_EXTENSIONS, read_table
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.files import absolute_if_exists


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images; all use the same `classes`."""

    name: str
    classes: tuple[str, ...]
    train: Images
    validation: Images | None
    test: Images | None
    channels: int
    fingerprint: str  # of the names, labels and sizes of the source's images
    can_flip: bool = True  # False if a mirrored image may belong to another class, as with digits
    notes: list[str] = field(default_factory=list)  # sentences on how the splits were made
    unreadable: dict[str, int] = field(default_factory=dict)  # images per split that were listed but left out
    source_splits: dict[str, str] = field(default_factory=dict)  # split -> the source's split that it was drawn from

    def as_dict(self) -> dict[str, Images]:
        """Returns the existing splits by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: images for name, images in named.items() if images is not None}


def absolute_address(address: str | Path) -> str:
    """Returns an address that means the same in any working folder; names and URLs are returned unchanged."""
    text = str(address)
    if isinstance(address, str) and text in BUILTIN_DATASETS:  # takes precedence over a folder of that name
        return text
    if text.startswith(HF_PREFIX):
        return HF_PREFIX + absolute_if_exists(text.removeprefix(HF_PREFIX))
    return str(Path(text).resolve()) if "://" not in text and is_shards(text) else absolute_if_exists(text)


def open_source(address: str | Path, channels: int | None = None, missing_ok: bool = False) -> Source:
    """Lists the images at an address: a built-in name, a folder, a table, shards, or hf:NAME.

    With `channels`, images are read as gray (1) or color (3). Raises `VitrailError` if a listed file or shard does not
    exist, unless `missing_ok`.
    """
    source = read_source(address)
    if (errors := [*source.missing, *source.damaged]) and not missing_ok:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise VitrailError(errors[0] + more, source.hint)
    return source.with_channels(channels) if channels else source


def read_source(address: str | Path) -> Source:
    """Chooses the reader of an address and returns what it lists, missing files included."""
    if isinstance(address, str) and address in BUILTIN_DATASETS:
        source = read_builtin_dataset(address)
        if Path(address).exists():
            source.notes.append(f"using the built-in {address}; write ./{address} for the folder of that name")
        return source
    if str(address).startswith(HF_PREFIX):
        return read_hf_dataset(str(address))
    if is_shards(address):
        return list_shards(address)
    path = Path(address)
    if os.path.isdir(path):  # not path.is_dir(), which raises for names that are too long
        return read_image_folder(path)
    if path.suffix.lower() in TABLE_EXTENSIONS and os.path.isfile(path):
        return read_table(path)
    if os.path.isfile(path):
        raise UsageError(
            f"{path} is not a folder, a table ({', '.join(TABLE_EXTENSIONS)}), a tar shard or a built-in name"
        )
    hint = did_you_mean(str(address), BUILTIN_DATASETS) if "/" not in str(address) else None
    raise UsageError(f"there is no folder, table or built-in data set {str(address)!r}", hint)


def open_data(
    address: str | Path,
    *,
    channels: int | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    split_seed: int = 0,
    missing_ok: bool = False,
) -> Splits:
    """Opens the images at an address for training; `build_splits` explains the arguments and errors."""
    source = open_source(address, channels, missing_ok)
    return build_splits(source, str(address), validation=validation, test=test, split_seed=split_seed)


def build_splits(source: Source, address: str, *, validation: float, test: float, split_seed: int) -> Splits:
    """Returns the splits of a source for training.

    A source that is not split is divided by class: the fractions `test` and `validation` are held out. If only the
    validation split is missing, it is taken from the training images. Raises `VitrailError`, naming the `address`, if
    there are no training images or fewer than two classes.
    """
    listings = complete_splits(source.splits, test, validation, split_seed)
    if "train" not in listings:
        raise VitrailError(f"{address} has {' and '.join(listings)} but no training images", "add a folder named train")
    classes = tuple(sorted(set(listings["train"].labels)))
    if len(classes) < 2:
        count = f"{len(classes)} class{'' if len(classes) == 1 else 'es'}"
        raise VitrailError(
            f"{address} has training images of {count}; at least two are needed",
            "put the images of each class into a folder of their own",
        )
    images = {
        split: encode_labels(listing, classes, f"{address}, {split}")
        for split, listing in listings.items()
        if listing.labels
    }
    fractions = {"test": test, "validation": validation}
    return Splits(
        name=source.name,
        classes=classes,
        train=images["train"],
        validation=images.get("validation"),
        test=images.get("test"),
        channels=source.channels,
        fingerprint=compute_fingerprint(source),
        can_flip=source.can_flip,
        notes=[
            *source.ignored,
            *source.notes,
            *note_held_out(images, source, fractions),
            *note_missing_classes(images),
        ],
        source_splits={split: source.find_split(split) for split in images},
    )


def note_held_out(images: dict[str, Images], source: Source, fractions: dict[str, float]) -> list[str]:
    """Returns a sentence for each split that the source did not have."""
    purposes = {"test": "held out as test images", "validation": "held out as validation images, to select the weights"}
    return [
        f"{len(images[split])} images ({fractions[split]:.0%} of each class) are {purpose}"
        for split, purpose in purposes.items()
        if split in images and split not in source.splits
    ]


def note_missing_classes(images: dict[str, Images]) -> list[str]:
    """Returns a sentence for each split that has no image of some class."""
    notes = []
    for split, members in images.items():
        missing = [name for name, n in members.count_by_class().items() if n == 0]
        if split != "train" and missing:
            notes.append(f"{split} has no image of {', '.join(missing)}")
    return notes
