"""The fingerprint of a source: it changes with any name, label or file size."""

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import pairwise

import numpy as np

from vitrail.data.encoded import EncodedImages
from vitrail.data.source import Listing, Source


def compute_fingerprint(source: Source) -> str:
    """Returns the SHA-256, in hex, of the splits, names, labels, file sizes and groups of all images, in any order.

    A source from Python has a digest of its pixels instead of sizes.

    Rows are sorted in memory only if the source does not list them in order.
    """
    sha = hashlib.sha256()
    separator = b""
    for split, listing in sorted(source.splits.items()):
        pixels = listing.pixels
        sizes = pixels.byte_sizes() if isinstance(pixels, EncodedImages) else np.zeros(len(listing), dtype=int)
        rows = partial(fingerprint_rows, split, listing, sizes)
        for row in rows() if is_sorted(rows()) else sorted(rows()):
            sha.update(separator + row.encode())
            separator = b"\n"
    sha.update(source.digest.encode())
    return sha.hexdigest()


def fingerprint_rows(split: str, listing: Listing, sizes: np.ndarray) -> Iterator[str]:
    """Yields the row of each image of a split, with its group if it has one."""
    if listing.groups is not None:
        for name, label, size, group in zip(listing.names, listing.labels, sizes, listing.groups, strict=True):
            yield f"{split}\0{name}\0{label}\0{size}\0{group}"
        return
    for name, label, size in zip(listing.names, listing.labels, sizes, strict=True):
        yield f"{split}\0{name}\0{label}\0{size}"


def is_sorted(rows: Iterable[str]) -> bool:
    return all(a <= b for a, b in pairwise(rows))
