"""Which task the labels of a source mean: one class per image, or several labels."""

from dataclasses import replace

import numpy as np

from vitrail.data.labels import NO_LABEL, SEPARATOR, LabelSets, count_by_label, split_texts
from vitrail.data.source import Listing, Source
from vitrail.data.strings import Categorical
from vitrail.errors import VitrailError
from vitrail.tasks import MULTI_LABEL, SINGLE_LABEL


def apply_task(source: Source, task: str | None) -> Source:
    """Returns the source with labels of a task: that which is given, else the one that its labels mean.

    A table whose labels have a ";" has several labels per image, and a note names it. Raises `VitrailError` if images
    have no class, or several, and the task needs one.
    """
    listings = source.splits
    has_sets = any(isinstance(listing.labels, LabelSets) for listing in listings.values())
    has_separators = source.is_table and any(
        SEPARATOR in label for listing in listings.values() for label in set(listing.labels)
    )
    if task == SINGLE_LABEL or (task is None and not has_sets and not has_separators):
        if source.empty_labels:
            raise VitrailError(source.empty_labels[0], "fill it in or remove the row")
        return replace(source, splits={split: with_one_class(source, listing) for split, listing in listings.items()})
    splits = {split: with_sets(listing) for split, listing in listings.items()}
    notes = source.notes
    if task is None:
        names = set().union(*(count_by_label(listing.labels) for listing in splits.values()))
        what = f"images have any number of {len(names)} labels"
        notes = [*notes, f"the task is {MULTI_LABEL}: {what} (--task {SINGLE_LABEL}: one class each)"]
    return replace(source, splits=splits, notes=notes)


def with_sets(listing: Listing) -> Listing:
    """Returns a listing with sets of labels."""
    return listing if isinstance(listing.labels, LabelSets) else replace(listing, labels=split_texts(listing.labels))


def with_one_class(source: Source, listing: Listing) -> Listing:
    """Returns a listing with one class per image; raises `VitrailError` if an image has none, or several labels."""
    if not isinstance(listing.labels, LabelSets):
        return listing
    for code in np.unique(listing.labels.codes).tolist():
        names = listing.labels.sets[code]
        if len(names) != 1:
            i = int(np.flatnonzero(listing.labels.codes == code)[0])
            has = f"the labels {', '.join(names)}" if names else "no label"
            raise VitrailError(
                f"{source.address or source.name}: {listing.names[i]} has {has}, and one class per image is needed",
                f"vitrail train DATA --task {MULTI_LABEL} trains a classifier for several labels",
            )
    classes = tuple(names[0] if names else NO_LABEL for names in listing.labels.sets)
    return replace(listing, labels=Categorical(classes, listing.labels.codes))
