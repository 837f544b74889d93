"""Which images of a source a classifier is scored on."""

from dataclasses import dataclass, replace
from typing import Any

from vitrail.data.bands import Channels
from vitrail.data.groups import has_groups
from vitrail.data.images import Images
from vitrail.data.open import open_source
from vitrail.data.python_data import Data
from vitrail.data.source import LeftOut, Listing, Source, encode_labels, find_unknown, own_groups_error
from vitrail.data.split import complete_splits
from vitrail.data.walk import log_left_out
from vitrail.errors import VitrailError
from vitrail.tasks import SINGLE_LABEL

SCORING_ORDER = ("test", "validation", "all", "train")  # the first split that exists is scored
OPTIMISTIC_NOTE = "used for selection during training, so the scores are optimistic"
TRANSFER_HINT = " (vitrail train DATA --from MODEL trains a head for other classes)"


@dataclass(frozen=True)
class ScoredImages:
    """Images to score a classifier on."""

    images: Images
    description: str  # "the 360 held-out test images of digits"
    optimistic: bool = False  # whether training selected weights or a hyperparameter on these images
    left_out: tuple[LeftOut, ...] = ()  # what the source leaves out


def open_images_to_score(
    data: Data,
    classes: tuple[str, ...],
    channels: Channels,
    trained_on: dict[str, Any],
    missing_ok: bool = False,
    task: str = SINGLE_LABEL,
    group_pattern: str | None = None,
) -> ScoredImages:
    """Opens the images on which to score a classifier with these classes and channels.

    These are the test images, else validation, else all. `trained_on` describes the training data (`origin["data"]`).
    If they are the data at the address, a split that it lacks is drawn as in training, so that no training image is
    scored. `group_pattern` finds the groups that are scored, and does not change which images these are.
    Prints what the source leaves out.
    """
    source, splits, is_training_data = open_as_trained(data, channels, trained_on, missing_ok, task, group_pattern)
    log_left_out(source.left_out)
    split = next(name for name in SCORING_ORDER if len(splits.get(name, ())))
    optimistic = split == "validation" and is_training_data
    description = describe_split(split, len(splits[split]), source)
    if split == "train" and is_training_data:
        description += ", which the model was trained on"
    elif optimistic:
        description += f", {OPTIMISTIC_NOTE}"
    elif split in ("all", "train") and source.name == trained_on.get("name"):
        description += "; the data have changed since training, so training images may be among them"
    return ScoredImages(
        encode_labels(splits[split], classes, source.address, TRANSFER_HINT),
        description,
        optimistic,
        tuple(source.left_out),
    )


def describe_split(split: str, n: int, source: Source) -> str:
    """Returns a phrase for the `n` images of a split, such as "the 360 held-out test images of digits"."""
    if split == "all":
        return f"all {n} images of {source.name}"
    held_out = "held-out " if split in ("test", "validation") and split not in source.splits else ""
    return f"the {n} {held_out}{split} images of {source.name}"


def open_known_splits(
    data: Data,
    classes: tuple[str, ...],
    channels: Channels,
    trained_on: dict[str, Any],
    missing_ok: bool = False,
    task: str = SINGLE_LABEL,
    group_pattern: str | None = None,
) -> dict[str, Images]:
    """Opens all splits at an address as in training, without those that have a class that the classifier lacks."""
    source, splits, _ = open_as_trained(data, channels, trained_on, missing_ok, task, group_pattern)
    return {
        name: encode_labels(listing, classes, source.address)
        for name, listing in splits.items()
        if len(listing) and not find_unknown(listing, classes)
    }


def group_as_trained(source: Source, trained_on: dict[str, Any]) -> Source:
    """Returns the source with the groups by which the training data were divided; unchanged if its names have none."""
    pattern = trained_on.get("split", {}).get("group_pattern")
    if pattern is None or has_groups(source):
        return source
    try:
        return source.with_groups(pattern)
    except VitrailError:
        return source


def open_as_trained(
    data: Data,
    channels: Channels,
    trained_on: dict[str, Any],
    missing_ok: bool,
    task: str,
    group_pattern: str | None = None,
) -> tuple[Source, dict[str, Listing], bool]:
    """Returns the source at an address, its splits, and whether it is what the classifier was trained on.

    Only then are missing splits added, as in training. The images are divided before `group_pattern` is applied, so
    that no training image is scored.
    """
    opened = open_source(data, channels, missing_ok, task)
    fractions = trained_on.get("split")
    source = group_as_trained(opened, trained_on)
    is_training_data = bool(fractions) and trained_on.get("fingerprint") == source.fingerprint
    splits = source.splits
    if fractions and is_training_data:
        splits = complete_splits(splits, fractions["test"], fractions["validation"], fractions["seed"])
    if group_pattern is not None:
        if any(listing.groups is not None for listing in opened.splits.values()):
            raise own_groups_error(source.address)
        ungrouped = {name: replace(listing, groups=None) for name, listing in splits.items()}
        splits = replace(source, splits=ungrouped).with_groups(group_pattern).splits
    return source, splits, is_training_data
