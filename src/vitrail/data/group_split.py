"""Divides images into parts so that groups stay whole and every part has each class in about its share."""

import numpy as np

from vitrail.data.groups import merge_groups
from vitrail.data.randomness import derive_seed
from vitrail.data.source import Listing
from vitrail.data.strings import factorize


def assign_groups(counts_GY: np.ndarray, keys: list[str], shares: tuple[float, ...], seed: int) -> np.ndarray:
    """Returns the part of each group, int64 (G,). `counts_GY` are its images of each class, `keys` name the groups.

    Groups are placed one after the other, those with the most uneven classes first (as in scikit-learn's
    `StratifiedGroupKFold`), each where it brings the fractions of every class nearest to `shares`. The order of equal
    groups depends only on the keys and the seed.
    """
    fractions_GY = counts_GY / np.maximum(counts_GY.sum(axis=0), 1)
    spread_G = counts_GY.std(axis=1)
    order = sorted(range(len(keys)), key=lambda g: (-spread_G[g], derive_seed("group", seed, keys[g])))
    placed_PY = np.zeros((len(shares), counts_GY.shape[1]))
    targets_P1 = np.array(shares)[:, None]
    part_of = np.zeros(len(keys), dtype=np.int64)
    for g in order:
        change_P = (fractions_GY[g] * (2 * (placed_PY - targets_P1) + fractions_GY[g])).sum(axis=1)
        best_P = np.flatnonzero(np.isclose(change_P, change_P.min(), rtol=0, atol=1e-12))
        fill_P = placed_PY.sum(axis=1) - targets_P1[:, 0] * counts_GY.shape[1]
        part = int(best_P[fill_P[best_P].argmin()])
        part_of[g] = part
        placed_PY[part] += fractions_GY[g]
    return part_of


def count_groups(listing: Listing, same_as: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns the group of each image (n,), the images of each group and class (G, Y), and a name of each group.

    Groups that share identical images (`same_as`, as `first_duplicates` returns it) are one group.
    """
    assert listing.groups is not None
    names, codes = factorize(listing.groups)
    merged, groups = np.unique(merge_groups(codes, same_as), return_inverse=True)
    classes, labels = factorize(listing.labels)
    counts_GY = np.zeros((len(merged), len(classes)), dtype=np.int64)
    np.add.at(counts_GY, (groups, labels), 1)
    return groups, counts_GY, [names[code] for code in merged]


def hold_out_groups(listing: Listing, fraction: float, seed: int, same_as: np.ndarray) -> list[int]:
    """Returns the indices of the images of whole groups, about the fraction of each class; sorted.

    Of every class at least one group remains.
    """
    groups, counts_GY, keys = count_groups(listing, same_as)
    is_held = assign_groups(counts_GY, keys, (1 - fraction, fraction), seed) == 1
    for label in range(counts_GY.shape[1]):
        members = np.flatnonzero(counts_GY[:, label])
        if is_held[members].all():
            is_held[members[counts_GY[members, label].argmax()]] = False
    held: list[int] = np.flatnonzero(is_held[groups]).tolist()
    return held
