"""Near duplicates: the same picture again after re-encoding, resizing, recolouring or a little noise.

An image is reduced to 16x16 greys, what a blur leaves is taken away, and the rest is a unit vector: two pictures of
alike things share their coarse light and dark, two copies of one picture share the fine structure as well. The inner
8x8 are compared once more by themselves, for two different pictures may have the same frame. The limits were chosen on
20,000 CIFAR-10 training images by looking at the pairs (docs/log.md). A crop of more than a row or two is not found.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.decode import ImageError
from vitrail.data.images import Images

SIDE = 16
MIN_SIMILARITY = 0.92  # least cosine of two copies: JPEG at quality 30 keeps it, grey for colour keeps it
MIN_INNER_SIMILARITY = 0.90  # the same of the inner 8x8
FLAT = 2.0  # deviation in grey levels below which the fine structure is noise, in all and inside
SMALLEST = 16  # sides in pixels below which alike and copied cannot be told apart: 8x8 digits
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's grey
MAX_PAIRS = (
    8  # copies before an image, and after it, that are always paired with it; crowds of more are not paired in full
)
CROWD = 1 << 16  # pairs in a block from which on it is cheaper, and takes less memory, to compare all of it in full
KEPT = 64  # directions that a first look compares; the rest of the distance only adds


@dataclass(frozen=True)
class DuplicatePair:
    """Two images that are copies of one another; `a` and `b` say (split, place in the split)."""

    a: tuple[str, int]
    b: tuple[str, int]
    similarity: float  # cosine, 1 for the same fine structure


def find_near_duplicates(
    splits: Mapping[str, Images], tick: Callable[[], object] = lambda: None
) -> list[DuplicatePair]:
    """Every pair of near or exact copies within and across the splits, the most alike first.

    `tick` is called once an image. An image that cannot be read, is flat, or has a side below 16 pixels is in no pair.
    """
    places: list[tuple[str, int]] = []
    signatures: list[np.ndarray] = []
    for split, images in splits.items():
        for i in range(len(images)):
            try:
                seen = compute_signature(images[i])
            except ImageError:
                seen = None
            if seen is not None:
                places.append((split, i))
                signatures.append(seen)
            tick()
    found = near_duplicate_pairs(np.stack(signatures), [split for split, _ in places]) if signatures else []
    return [DuplicatePair(places[i], places[j], likeness) for i, j, likeness in found]


def compute_signature(image_CHW: Tensor) -> np.ndarray | None:
    """The fine structure of uint8 pixels (C, h, w) as int8 (256,); None where there is none to compare."""
    if min(image_CHW.shape[-2:]) < SMALLEST:
        return None
    weights = torch.tensor(LUMA if len(image_CHW) == 3 else (1.0,)).view(-1, 1, 1)
    grey_1HW = (image_CHW.float() * weights).sum(0, keepdim=True)
    small = F.interpolate(grey_1HW[None], (SIDE, SIDE), mode="bilinear", antialias=True)
    fine = small - F.avg_pool2d(F.pad(small, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    if min(fine.std(), fine[..., 4:12, 4:12].std()) < FLAT:
        return None
    return (fine * (127 / fine.abs().max())).round().to(torch.int8).flatten().numpy()


def near_duplicate_pairs(
    signatures: np.ndarray, kinds: Sequence[str] = (), block: int = 2048
) -> list[tuple[int, int, float]]:
    """The pairs (i < j) of signatures (n, 256) that are copies, with their likeness, the most alike first.

    Pairs are compared first in the 64 directions in which these images differ most, where a distance is never longer
    than in all 256, then in full. No pair is lost to the first look. All are there, unless many images are alike, as
    from a camera that stands still: then an image has at least its first 8 copies after it, and its first 8 before it,
    of each of the `kinds` (n,) that images are of.
    """
    names = list(dict.fromkeys(kinds)) or [""]
    kind = torch.tensor([names.index(name) for name in kinds or names * len(signatures)], dtype=torch.int64)
    later, earlier = (torch.zeros(len(signatures), len(names), dtype=torch.int64) for _ in range(2))
    fine = center_and_normalize(torch.from_numpy(signatures.astype(np.float32)))
    inside = center_and_normalize(fine.view(-1, SIDE, SIDE)[:, 4:12, 4:12].flatten(1))
    _, directions = torch.linalg.eigh(fine.T @ fine)
    coarse = fine @ directions[:, -KEPT:]
    half = coarse.square().sum(1, keepdim=True) / 2
    one = torch.ones_like(half)
    queries, keys = torch.cat([coarse, -half, one], 1), torch.cat([coarse, one, -half], 1)  # product: -distance² / 2
    least = MIN_SIMILARITY - 1 - 1e-4  # -distance² / 2 of unit vectors at this cosine
    found: list[tuple[int, int, float]] = []
    for at in range(0, len(fine), block):
        for to in range(at, len(fine), block):
            near = queries[at : at + block] @ keys[to : to + block].T
            if near.max() < least and at != to:
                continue
            i, j = (near >= least).triu(1 + at - to).nonzero(as_tuple=True)
            if len(i) > CROWD:
                likeness, within = ((v[at : at + block] @ v[to : to + block].T)[i, j] for v in (fine, inside))
            else:
                likeness, within = ((v[i + at] * v[j + to]).sum(1) for v in (fine, inside))
            sure = (likeness >= MIN_SIMILARITY) & (within >= MIN_INNER_SIMILARITY)
            i, j, likeness = i[sure] + at, j[sure] + to, likeness[sure]
            (rows, row), (columns, column) = (distinct(places, len(fine)) for places in (i, j))
            alike = torch.zeros(len(rows), len(columns), dtype=torch.bool)
            alike[row, column] = True
            first = among_first(alike, rows, kind[columns], later)
            first |= among_first(alike.T, columns, kind[rows], earlier).T
            kept = first[row, column]
            found += zip(i[kept].tolist(), j[kept].tolist(), likeness[kept].tolist(), strict=True)
    return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))


def among_first(alike: Tensor, rows: Tensor, kind: Tensor, counts: Tensor) -> Tensor:
    """Where a table of copies (r, c) may be true to give each row at most 8 of each kind of column, the first ones.

    `counts` (n, kinds) says how many the `rows` (r,) of it had before; these are added.
    """
    first = torch.zeros_like(alike)
    for number in sorted(set(kind.tolist())):
        columns = kind == number
        so_many = alike[:, columns].cumsum(1) + counts[rows, number].unsqueeze(1)
        first[:, columns] = so_many <= MAX_PAIRS
        counts[rows, number] = so_many[:, -1]
    return first


def distinct(places: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The places below `n` that occur, in order, and for each given one its number among them; quicker than a sort."""
    there = torch.zeros(n, dtype=torch.bool)
    there[places] = True
    return there.nonzero().flatten(), (there.cumsum(0) - 1)[places]


def center_and_normalize(vectors: Tensor) -> Tensor:
    """Each row less its mean, at length one."""
    centred = vectors - vectors.mean(1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-6)
