"""Chooses the images to hold out: every class or label keeps its share, identical images and groups stay together.

Several labels per image: iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011, "On the stratification of
multi-label data").
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from vitrail.data.encoded import SHA256_BYTES, EncodedImages
from vitrail.data.labels import Categorical, LabelSets
from vitrail.data.randomness import derive_seed
from vitrail.data.source import Listing


def choose_held_out(listing: Listing, fraction: float, seed: int) -> list[int]:
    """Returns the indices of the images to hold out, sorted: the fraction of each class, and at least one of three.

    The choice depends only on names, labels, groups and the seed, not on the order of the images. Identical images are
    on one side; groups are too, and then the fraction holds about.
    """
    same_as = first_duplicates(listing)
    if isinstance(listing.labels, LabelSets):
        return hold_out_by_label(listing, same_as, fraction, seed)
    hold_out = hold_out_by_class if listing.groups is None else hold_out_groups
    return hold_out(listing, same_as, fraction, seed)


def hold_out_by_class(listing: Listing, same_as: np.ndarray, fraction: float, seed: int) -> list[int]:
    """Returns what `choose_held_out` does, for images with one class each."""
    codes = listing.labels.strata
    class_ends = np.bincount(codes, minlength=listing.labels.stratum_count).cumsum()[:-1]
    held_out: list[int] = []
    for members in np.split(np.argsort(codes, kind="stable"), class_ends):
        minimum = 1 if len(members) >= 3 else 0
        target = min(max(round(fraction * len(members)), minimum), len(members) - 1)
        copies: dict[int, list[int]] = {}  # identical images, each group in the order of names
        for i in sorted(members.tolist(), key=lambda i: listing.names[i]):
            copies.setdefault(int(same_as[i]), []).append(i)
        chosen: list[int] = []
        for group in sorted(copies.values(), key=lambda group: derive_seed("split", seed, listing.names[group[0]])):
            if len(chosen) + len(group) <= target:
                chosen += group
        held_out += chosen
    return sorted(held_out)


def hold_out_by_label(listing: Listing, same_as: np.ndarray, fraction: float, seed: int) -> list[int]:
    """Returns what `choose_held_out` does, for several labels: about the fraction of those with each label.

    Of every label at least one group of images remains.
    """
    groups = sorted_groups(listing.names, whole_groups(listing, same_as), "split", seed)
    rows = label_rows(listing.labels)
    part = divide_by_label(rows, groups, (1 - fraction, fraction))
    counts_GY = np.stack([rows[group].sum(0) for group in groups])
    is_held = keep_every_label(part == 1, counts_GY[:, :-1])
    return sorted(i for number in np.flatnonzero(is_held).tolist() for i in groups[number])


def whole_groups(listing: Listing, same_as: np.ndarray) -> np.ndarray:
    """Returns the number of the group of each image, int64 (n,); without groups only identical images are together."""
    return same_as if listing.groups is None else merge_groups(listing.groups.codes, same_as)


def keep_every_label(is_held: np.ndarray, counts_GY: np.ndarray) -> np.ndarray:
    """Returns which groups are held out (G,), less the largest group of each class or label that would not remain.

    `counts_GY` are the images of each group with each class or label.
    """
    is_held = is_held.copy()
    for counts_G in counts_GY.T:
        members = np.flatnonzero(counts_G)
        if len(members) and is_held[members].all():
            is_held[members[counts_G[members].argmax()]] = False
    return is_held


def label_rows(labels: Categorical) -> np.ndarray:
    """Returns which labels each image has, int64 (n, labels + 1); the last column is that of images without any."""
    multi_hot = labels.encode(labels.classes)
    no_label = multi_hot.sum(1, keepdims=True) == 0
    return np.concatenate([multi_hot, no_label], axis=1).astype(np.int64)


def divide_by_label(rows: np.ndarray, groups: Sequence[Sequence[int]], shares: Sequence[float]) -> np.ndarray:
    """Returns the part of each group of images, int64 (groups,), by iterative stratification.

    `rows` (n, labels) has a 1 for each label of an image, `groups` the indices of the images that stay together, and
    `shares` the fraction of the images in each part. The label with the fewest images left is divided first: each of
    its groups, in the given order, goes to the part that lacks most images of the label.
    """
    counts = np.stack([rows[list(group)].sum(0) for group in groups])  # (groups, labels)
    sizes = np.array([len(group) for group in groups])
    lacking = np.array(shares)[:, None] * counts.sum(0)  # (parts, labels)
    lacking_images = np.array(shares) * sizes.sum()
    part = np.full(len(groups), -1)
    while (part < 0).any():
        remaining = (counts * (part < 0)[:, None]).sum(0)
        label = int(np.argmin(np.where(remaining > 0, remaining, np.iinfo(np.int64).max)))
        for i in np.flatnonzero((part < 0) & (counts[:, label] > 0)).tolist():
            part[i] = choose_part(lacking[:, label], lacking_images)
            lacking[part[i]] -= counts[i]
            lacking_images[part[i]] -= sizes[i]
    return part


def choose_part(lacking: np.ndarray, lacking_images: np.ndarray) -> int:
    """Returns the part that lacks most images of a label; at a tie, the one that lacks most images in all."""
    tied = np.flatnonzero(lacking >= lacking.max() - 1e-9)
    return int(tied[lacking_images[tied].argmax()])


def sorted_groups(names: Sequence[str], group_of: np.ndarray, purpose: str, seed: int) -> list[list[int]]:
    """Returns the indices of the images by group, in an order that is drawn from the names, the purpose and the seed.

    `group_of` (n,) has the number of the group of each image.
    """
    groups: dict[int, list[int]] = {}
    for i in sorted(range(len(names)), key=lambda i: names[i]):
        groups.setdefault(int(group_of[i]), []).append(i)
    return sorted(groups.values(), key=lambda group: derive_seed(purpose, seed, names[group[0]]))


def hold_out_groups(listing: Listing, same_as: np.ndarray, fraction: float, seed: int) -> list[int]:
    """Returns what `choose_held_out` does, for whole groups with one class per image, or numbers.

    Of every class at least one group remains.
    """
    groups, counts_GY, keys = count_groups(listing, same_as)
    is_held = keep_every_label(assign_groups(counts_GY, keys, (1 - fraction, fraction), seed) == 1, counts_GY)
    held: list[int] = np.flatnonzero(is_held[groups]).tolist()
    return held


def count_groups(listing: Listing, same_as: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns the group of each image (n,), the images of each group and class (G, Y), and a name of each group.

    Groups that share identical images (`same_as`, as `first_duplicates` returns it) are one group.
    """
    assert listing.groups is not None
    merged, groups = np.unique(merge_groups(listing.groups.codes, same_as), return_inverse=True)
    counts_GY = np.zeros((len(merged), listing.labels.stratum_count), dtype=np.int64)
    np.add.at(counts_GY, (groups, listing.labels.strata), 1)
    return groups, counts_GY, [listing.groups.categories[code] for code in merged]


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


def merge_groups(codes: np.ndarray, same_as: np.ndarray) -> np.ndarray:
    """Returns group codes in which image i has the group of image `same_as[i]`: groups that share an image are one."""
    parent = np.arange(int(codes.max()) + 1 if len(codes) else 0)

    def root(group: int) -> int:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = int(parent[group])
        return group

    for i in np.flatnonzero(same_as != np.arange(len(codes))).tolist():
        first, second = sorted((root(int(codes[i])), root(int(codes[same_as[i]]))))
        parent[second] = first
    return np.array([root(group) for group in range(len(parent))], dtype=np.int64)[codes]


def first_duplicates(listing: Listing) -> np.ndarray:
    """Returns for each image the index of the first image of its class with identical content, int64 (n,).

    With several labels or numbers there are no classes, and identical images are found whatever their labels are. Only
    files of one size and class are read. Data sets that decode on access are not read: each image counts as unique.
    """
    codes = listing.labels.strata
    first = np.arange(len(listing))
    if isinstance(listing.pixels, Tensor):
        index_of: dict[tuple[int, bytes], int] = {}
        digests = (hashlib.sha256(pixels.numpy().tobytes()).digest() for pixels in listing.pixels)
        keys = zip(codes.tolist(), digests, strict=True)
        return np.array([index_of.setdefault(key, i) for i, key in enumerate(keys)], dtype=np.int64)
    if not isinstance(listing.pixels, EncodedImages):
        return first
    sizes = listing.pixels.byte_sizes()
    _, inverse, counts = np.unique(np.stack([codes, sizes]), axis=1, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero((counts[inverse.ravel()] > 1) & (sizes >= 0))
    digests_and_codes = np.concatenate(
        [listing.pixels.sha256(candidates), codes[candidates, None].astype(">i8").view(np.uint8)], axis=1
    )
    rows = np.ascontiguousarray(digests_and_codes).view(f"V{SHA256_BYTES + 8}").ravel()
    _, earliest, inverse = np.unique(rows, return_index=True, return_inverse=True)
    first[candidates] = candidates[earliest[inverse]]
    return first
