"""Draws the splits that a source lacks, stratified by class."""

import numpy as np
from torch import Tensor

from vitrail.data.encoded import SHA256_BYTES, EncodedImages
from vitrail.data.randomness import derive_seed
from vitrail.data.source import Listing
from vitrail.data.strings import factorize


def complete_splits(splits: dict[str, Listing], test: float, validation: float, seed: int) -> dict[str, Listing]:
    """Adds missing splits: test from a source that is not split, validation from training. Empty ones are dropped."""
    splits = dict(splits)
    if "all" in splits:
        splits["train"], splits["test"] = split_listing(splits.pop("all"), test, seed)
    if "train" in splits and "validation" not in splits:
        splits["train"], splits["validation"] = split_listing(splits["train"], validation, seed + 1)
    return {name: listing for name, listing in splits.items() if len(listing)}


def split_listing(listing: Listing, fraction: float, seed: int) -> tuple[Listing, Listing]:
    """Returns (rest, held_out): `held_out` has the fraction of each class, at least one image if the class has three.

    The choice depends only on the image names and the seed, not on their order. Identical images are never divided
    between the two.
    """
    if not fraction:
        return listing, listing.subset([])
    held_out: list[int] = []
    classes, codes = factorize(listing.labels)
    duplicate_of = first_duplicates(listing)
    class_ends = np.bincount(codes, minlength=len(classes)).cumsum()[:-1]
    for members in np.split(np.argsort(codes, kind="stable"), class_ends):
        minimum = 1 if len(members) >= 3 else 0
        target = min(max(round(fraction * len(members)), minimum), len(members) - 1)
        groups: dict[int, list[int]] = {}  # identical images, each group in the order of names
        for i in sorted(members.tolist(), key=lambda i: listing.names[i]):
            groups.setdefault(int(duplicate_of[i]), []).append(i)
        chosen: list[int] = []
        for group in sorted(groups.values(), key=lambda group: derive_seed("split", seed, listing.names[group[0]])):
            if len(chosen) + len(group) <= target:
                chosen += group
        held_out += chosen
    return listing.subset(np.delete(np.arange(len(listing)), held_out)), listing.subset(sorted(held_out))


def first_duplicates(listing: Listing) -> np.ndarray:
    """Returns for each image the index of the first image with identical content, int64 (n,).

    Only files of equal size are read. Data sets that decode on access are not read: each image counts as unique.
    """
    first = np.arange(len(listing))
    if isinstance(listing.pixels, Tensor):
        index_by_bytes: dict[bytes, int] = {}
        return np.array([index_by_bytes.setdefault(x.numpy().tobytes(), i) for i, x in enumerate(listing.pixels)])
    if not isinstance(listing.pixels, EncodedImages):
        return first
    sizes = listing.pixels.byte_sizes()
    _, inverse, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero((counts[inverse] > 1) & (sizes >= 0))
    digests = np.ascontiguousarray(listing.pixels.sha256(candidates)).view(f"S{SHA256_BYTES}").ravel()
    _, earliest, inverse = np.unique(digests, return_index=True, return_inverse=True)
    first[candidates] = candidates[earliest[inverse]]
    return first
