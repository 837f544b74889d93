"""Divides images into folds for cross-validation: stratified by class, with groups and identical images whole."""

import numpy as np

from vitrail.data.randomness import derive_seed
from vitrail.data.source import Listing
from vitrail.data.stratification import assign_groups, count_groups, first_duplicates
from vitrail.errors import UsageError

HINT = "use fewer folds"


def assign_folds(listing: Listing, folds: int, seed: int) -> np.ndarray:
    """Returns the fold of each image, int64 (n,), from 0. It depends only on names, groups, classes and the seed.

    Raises `UsageError` if a class has fewer images than there are folds, if there are fewer groups than folds, and if a
    class would be missing among the training images of a fold.
    """
    if folds < 2:
        raise UsageError(f"folds is {folds}", "use 2 or more; 5 is usual")
    classes, labels = listing.labels.categories, listing.labels.codes
    counts_Y = np.bincount(labels, minlength=len(classes))
    for name, n in zip(classes, counts_Y.tolist(), strict=True):
        if n < folds:
            images = f"{n} image{'' if n == 1 else 's'}"
            raise UsageError(f"the class {name!r} has {images}, fewer than {folds} folds", f"{HINT}, or leave it out")
    same_as = first_duplicates(listing)
    if listing.groups is None:
        return deal_images(listing, labels, same_as, folds, seed)
    groups, counts_GY, keys = count_groups(listing, same_as)
    if len(keys) < folds:
        raise UsageError(f"there are {len(keys)} groups, fewer than {folds} folds", HINT)
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
