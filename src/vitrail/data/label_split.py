"""Holds out images with several labels so that every label keeps its share: iterative stratification.

Sechidis, Tsoumakas & Vlahavas 2011, "On the stratification of multi-label data".
"""

from collections.abc import Sequence

import numpy as np

from vitrail.data.labels import LabelSets, count_by_label
from vitrail.data.randomness import derive_seed


def hold_out_by_label(
    labels: LabelSets, names: Sequence[str], duplicate_of: np.ndarray, fraction: float, seed: int
) -> list[int]:
    """Returns the indices of the images to hold out, sorted: about `fraction` of all, and of those with each label.

    Images with the same value in `duplicate_of` stay together. The choice depends only on names, labels and the seed,
    not on the order of the images.
    """
    classes = sorted(count_by_label(labels))
    groups = sorted_groups(names, duplicate_of, seed)
    multi_hot = labels.to_multi_hot(classes)
    no_label = multi_hot.sum(1, keepdims=True) == 0
    rows = np.concatenate([multi_hot, no_label], axis=1).astype(np.int64)  # images without a label are divided too
    counts = np.stack([rows[group].sum(0) for group in groups])  # (groups, labels): images of a group with each label
    sizes = np.array([len(group) for group in groups])
    wanted = np.array([[1 - fraction], [fraction]]) * counts.sum(0)  # (2, labels): rest, held out
    places = np.array([1 - fraction, fraction]) * sizes.sum()
    part = np.full(len(groups), -1)
    while (part < 0).any():
        remaining = (counts * (part < 0)[:, None]).sum(0)
        label = int(np.argmin(np.where(remaining > 0, remaining, np.iinfo(np.int64).max)))
        for i in np.flatnonzero((part < 0) & (counts[:, label] > 0)).tolist():
            part[i] = choose_part(wanted[:, label], places)
            wanted[part[i]] -= counts[i]
            places[part[i]] -= sizes[i]
    return sorted(i for number in np.flatnonzero(part == 1).tolist() for i in groups[number])


def choose_part(wanted: np.ndarray, places: np.ndarray) -> int:
    """Returns the part, 0 or 1, that lacks more images of a label; if both lack as many, the one with more places."""
    if abs(wanted[0] - wanted[1]) > 1e-9:
        return int(wanted[1] > wanted[0])
    return int(places[1] > places[0])


def sorted_groups(names: Sequence[str], duplicate_of: np.ndarray, seed: int) -> list[list[int]]:
    """Returns the indices of the images by group, in an order that is drawn from the names and the seed."""
    groups: dict[int, list[int]] = {}
    for i in sorted(range(len(names)), key=lambda i: names[i]):
        groups.setdefault(int(duplicate_of[i]), []).append(i)
    return sorted(groups.values(), key=lambda group: derive_seed("split", seed, names[group[0]]))
