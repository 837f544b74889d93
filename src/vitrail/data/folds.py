"""Divides images into folds for cross-validation: stratified, with groups and identical images whole.

One class or grade per image is stratified by class. Several labels are by iterative stratification
(`data/stratification.py`), and numbers in the same way by the bins between their quantiles.
"""

import numpy as np

from vitrail.data.labels import LabelSets, Numbers
from vitrail.data.randomness import derive_seed
from vitrail.data.source import Listing
from vitrail.data.stratification import (
    assign_groups,
    count_groups,
    divide_by_label,
    first_duplicates,
    label_rows,
    sorted_groups,
    whole_groups,
)
from vitrail.errors import UsageError

HINT = "use fewer folds"
MAX_BINS = 10  # of a number


def assign_folds(listing: Listing, folds: int, seed: int) -> np.ndarray:
    """Returns the fold of each image, int64 (n,), from 0. It depends only on names, groups, labels and the seed.

    Raises `UsageError` if a class or label has fewer images than there are folds, if there are fewer images or groups
    than folds, and if a class or label would be missing among the training images of a fold.
    """
    if folds < 2:
        raise UsageError(f"folds is {folds}", "use 2 or more; 5 is usual")
    same_as = first_duplicates(listing)
    if isinstance(listing.labels, Numbers):
        return divide_images(listing, quantile_rows(listing.labels, folds), same_as, folds, seed)
    if isinstance(listing.labels, LabelSets):
        return assign_by_label(listing, same_as, folds, seed)
    return assign_by_class(listing, same_as, folds, seed)


def assign_by_class(listing: Listing, same_as: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Returns what `assign_folds` does, for images with one class each."""
    classes, labels = listing.labels.categories, listing.labels.codes
    counts_Y = np.bincount(labels, minlength=len(classes))
    check_counts("class", dict(zip(classes, counts_Y.tolist(), strict=True)), folds)
    if listing.groups is None:
        return deal_images(listing, labels, same_as, folds, seed)
    groups, counts_GY, keys = count_groups(listing, same_as)
    check_units(len(keys), folds, "groups")
    fold_of = assign_groups(counts_GY, keys, (1 / folds,) * folds, seed)
    for label, name in enumerate(classes):
        if len(np.unique(fold_of[counts_GY[:, label] > 0])) < 2:
            n = int((counts_GY[:, label] > 0).sum())
            raise UsageError(
                f"the class {name!r} has images of only {n} group{'' if n == 1 else 's'}, all in one fold, which would "
                "train without it",
                "add groups of this class, or leave it out",
            )
    return fold_of[groups]


def assign_by_label(listing: Listing, same_as: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Returns what `assign_folds` does, for images with several labels."""
    counts = listing.labels.counts()
    check_counts("label", {name: counts[name] for name in listing.labels.classes}, folds)
    rows = label_rows(listing.labels)
    fold_of = divide_images(listing, rows, same_as, folds, seed)
    for label, name in enumerate(listing.labels.classes):
        if len(np.unique(fold_of[rows[:, label] > 0])) < 2:
            raise UsageError(
                f"all images with the label {name!r} are in one fold, which would train without it",
                "add images or groups with this label, leave it out, or try another --split-seed",
            )
    return fold_of


def check_counts(kind: str, counts: dict[str, int], folds: int) -> None:
    """Raises `UsageError` for a class or label with fewer images than there are folds."""
    for name, n in counts.items():
        if n < folds:
            images = f"{n} image{'' if n == 1 else 's'}"
            raise UsageError(f"the {kind} {name!r} has {images}, fewer than {folds} folds", f"{HINT}, or leave it out")


def check_units(count: int, folds: int, what: str) -> None:
    """Raises `UsageError` if there are fewer groups or images than folds."""
    if count < folds:
        raise UsageError(f"there are {count} {what}, fewer than {folds} folds", HINT)


def divide_images(listing: Listing, rows: np.ndarray, same_as: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Returns the fold of each image by iterative stratification of `rows` (n, labels); groups stay whole."""
    groups = sorted_groups(listing.names, whole_groups(listing, same_as), "fold", seed)
    check_units(len(groups), folds, "different images" if listing.groups is None else "groups")
    fold_of = np.zeros(len(listing), dtype=np.int64)
    for group, fold in zip(groups, divide_by_label(rows, groups, (1 / folds,) * folds).tolist(), strict=True):
        fold_of[group] = fold
    return fold_of


def quantile_rows(numbers: Numbers, folds: int) -> np.ndarray:
    """Returns in which bin each number of an image is, int64 (n, numbers * bins) of 0 and 1.

    The bins of a number lie between its quantiles: at most 10, and of at least as many images as there are folds. Equal
    numbers are in one bin.
    """
    bins = int(np.clip(len(numbers) // folds, 1, MAX_BINS))
    columns = []
    for values in numbers.encode(numbers.classes).T:
        edges = np.unique(np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf"))
        columns.append(np.searchsorted(edges, values)[:, None] == np.arange(bins))
    return np.concatenate(columns, axis=1).astype(np.int64)


def deal_images(listing: Listing, labels: np.ndarray, same_as: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Returns the fold of each image: of each class, in random order, one for each fold in turn.

    Identical images of a class are in one fold.
    """
    fold_of = np.zeros(len(listing), dtype=np.int64)
    sizes_F = np.zeros(folds, dtype=np.int64)
    for label in range(int(labels.max()) + 1):
        copies: dict[int, list[int]] = {}
        for i in sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: listing.names[i]):
            copies.setdefault(int(same_as[i]), []).append(i)
        of_class_F = np.zeros(folds, dtype=np.int64)
        for images in sorted(copies.values(), key=lambda images: derive_seed("fold", seed, listing.names[images[0]])):
            fold = int(np.lexsort((sizes_F, of_class_F))[0])
            fold_of[images] = fold
            of_class_F[fold] += len(images)
            sizes_F[fold] += len(images)
    return fold_of
