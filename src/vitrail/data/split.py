"""Splits a source into training, validation and test images that share one class order.

Splits that the source lacks are drawn from the others, stratified by class. The classes are those of the training
images, in alphabetical order, and grades in theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vitrail.console import log, progress_bar
from vitrail.data.bands import Channels
from vitrail.data.decode import ImageError
from vitrail.data.images import Images, load_into_memory
from vitrail.data.source import Listing, Source, encode_labels
from vitrail.data.stratification import choose_held_out
from vitrail.errors import VitrailError
from vitrail.tasks import REGRESSION


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images; all use the same `classes`."""

    name: str
    classes: tuple[str, ...]
    train: Images
    validation: Images | None
    test: Images | None
    channels: Channels
    fingerprint: str  # of the names, labels and sizes of the source's images
    can_flip: bool = True  # False if a mirrored image may belong to another class, as with digits
    notes: list[str] = field(default_factory=list)  # sentences on how the splits were made
    unreadable: dict[str, int] = field(default_factory=dict)  # images per split that were listed but left out
    source_splits: dict[str, str] = field(default_factory=dict)  # split -> the source's split that it was drawn from

    def as_dict(self) -> dict[str, Images]:
        """Returns the existing splits by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: images for name, images in named.items() if images is not None}


def build_splits(source: Source, *, validation: float = 0.1, test: float = 0.2, split_seed: int = 0) -> Splits:
    """Returns the splits of a source for training.

    A source that is not split is divided by class: the fractions `test` and `validation` are held out. If only the
    validation split is missing, it is taken from the training images. Raises `VitrailError`, naming the address, if
    there are no training images or fewer than two classes.
    """
    address = source.address
    listings = complete_splits(source.splits, test, validation, split_seed)
    if "train" not in listings:
        raise VitrailError(f"{address} has {' and '.join(listings)} but no training images", "add a folder named train")
    classes = listings["train"].labels.classes
    if len(classes) < 2 and source.task != REGRESSION:
        count = f"{len(classes)} class{'' if len(classes) == 1 else 'es'}"
        raise VitrailError(
            f"{address} has training images of {count}; at least two are needed",
            "put the images of each class into a folder of their own",
        )
    images = {
        split: encode_labels(listing, classes, f"{address}, {split}")
        for split, listing in listings.items()
        if len(listing)
    }
    held_out_notes = note_held_out(images, source, {"test": test, "validation": validation})
    left_out = [f"{each.sentence}; not used" for each in source.left_out]
    return Splits(
        name=source.name,
        classes=classes,
        train=images["train"],
        validation=images.get("validation"),
        test=images.get("test"),
        channels=source.channels,
        fingerprint=source.fingerprint,
        can_flip=source.can_flip,
        notes=[*left_out, *source.notes, *held_out_notes, *note_missing_classes(images)],
        source_splits={split: source.find_split(split) for split in images},
    )


def note_held_out(images: dict[str, Images], source: Source, fractions: dict[str, float]) -> list[str]:
    """Returns a sentence for each split that the source did not have."""
    purposes = {"test": "held out as test images", "validation": "held out as validation images, to select the weights"}
    notes = []
    for split, purpose in purposes.items():
        if split in images and split not in source.splits:
            of = "the images" if images[split].task == REGRESSION else "each class"
            part, groups = f"{fractions[split]:.0%} of {of}", images[split].groups
            if groups is not None:
                part = f"about {part}, {len(set(groups))} whole groups"
            notes.append(f"{len(images[split])} images ({part}) are {purpose}")
    return notes


def note_missing_classes(images: dict[str, Images]) -> list[str]:
    """Returns a sentence for each split that has no image of some class."""
    notes = []
    for split, members in images.items():
        missing = [name for name, n in members.count_by_class().items() if n == 0]
        if split != "train" and missing:
            notes.append(f"{split} has no image of {', '.join(missing)}")
    return notes


def complete_splits(splits: dict[str, Listing], test: float, validation: float, seed: int) -> dict[str, Listing]:
    """Adds missing splits: test from a source that is not split, validation from training. Empty ones are dropped."""
    splits = dict(splits)
    for origin, name, fraction, split_seed in (
        ("all", "test", test, seed),
        ("train", "validation", validation, seed + 1),
    ):
        if origin in splits and name not in splits:
            splits["train"], splits[name] = split_listing(splits[origin], fraction, split_seed)
    return {name: listing for name, listing in splits.items() if name != "all" and len(listing)}


def split_listing(listing: Listing, fraction: float, seed: int) -> tuple[Listing, Listing]:
    """Returns (rest, held_out): `held_out` has the fraction of each class, at least one image if the class has three.

    The choice depends only on the image names and the seed, not on their order. Identical images are never divided
    between the two. If the images have groups, groups are not divided either, and the fraction holds about.
    """
    held_out = choose_held_out(listing, fraction, seed) if fraction else []
    if not held_out:
        return listing, listing.subset([])
    rest, held = (listing.subset(part) for part in (np.delete(np.arange(len(listing)), held_out), held_out))
    return rest, held


def drop_images(splits: Splits, unreadable: Mapping[str, Sequence[str]]) -> Splits:
    """Returns the splits without these images, which are named by the source's split.

    Raises `VitrailError` if fewer than two training classes remain.
    """
    before = splits.as_dict()
    after: dict[str, Images] = {}
    for name, images in before.items():
        dropped = {*unreadable.get(splits.source_splits.get(name, name), ())}
        readable = [i for i, image in enumerate(images.names) if image not in dropped]
        after[name] = images.subset(readable) if len(readable) < len(images) else images
    counts = {name: len(images) - len(after[name]) for name, images in before.items()}
    if not (total := sum(counts.values())):
        return splits
    log(f"{total} unreadable image{'s are' if total > 1 else ' is'} skipped (--skip-unreadable)")
    classes = [name for name, images in after["train"].count_by_class().items() if images]
    if len(classes) < (1 if splits.train.task == REGRESSION else 2):
        reason = f"only the class {classes[0]!r} has a" if classes else "there is no"
        raise VitrailError(
            f"{reason} readable training image; two classes are needed", "vitrail check lists the reasons"
        )
    remaining: dict[str, Any] = {name: images if len(images) else None for name, images in after.items()}
    return replace(splits, **remaining, unreadable={name: count for name, count in counts.items() if count})


def load_splits_into_memory(splits: Splits, max_bytes: int, skip_unreadable: bool = False) -> Splits:
    """Decodes the splits into memory if they fit in `max_bytes`, which proves that each file can be read."""
    parts = splits.as_dict()
    total = sum(map(len, parts.values()))
    with progress_bar("reading images", total) as progress:
        try:
            loaded: dict[str, Any] = {
                name: load_into_memory(images, max_bytes * len(images) // total, progress.advance)
                for name, images in parts.items()
            }
        except ImageError:
            if skip_unreadable:  # the loader counts it
                return splits
            raise
    return replace(splits, **loaded)
