"""Near duplicates: the same picture again after re-encoding, resizing, recolouring or a little noise.

An image is reduced to 16x16 greys, what a blur leaves is taken away, and the rest is a unit vector: two pictures of
alike things share their coarse light and dark, two copies of one picture share the fine structure as well. The inner
8x8 are compared once more by themselves, for two different pictures may have the same frame. The limits were chosen on
20,000 CIFAR-10 training images by looking at the pairs (docs/log.md). A crop of more than a row or two is not found.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.decode import ImageError
from vitrail.data.images import Images

SIDE = 16
ALIKE = 0.92  # least cosine of two copies: JPEG at quality 30 keeps it, grey for colour keeps it
ALIKE_INSIDE = 0.90  # the same of the inner 8x8
FLAT = 2.0  # deviation in grey levels below which the fine structure is noise, in all and inside
SMALLEST = 16  # sides in pixels below which alike and copied cannot be told apart: 8x8 digits
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's grey
KEPT = 64  # directions that a first look compares; the rest of the distance only adds


@dataclass(frozen=True)
class Pair:
    """Two images that are copies of one another; `a` and `b` say (split, place in the split)."""

    a: tuple[str, int]
    b: tuple[str, int]
    likeness: float  # cosine, 1 for the same fine structure


def copies_across(splits: Mapping[str, Images], tick: Callable[[], object] = lambda: None) -> list[Pair]:
    """Every pair of near or exact copies within and across the splits, the most alike first.

    `tick` is called once an image. An image that cannot be read, is flat, or has a side below 16 pixels is in no pair.
    """
    places: list[tuple[str, int]] = []
    signatures: list[np.ndarray] = []
    for split, images in splits.items():
        for i in range(len(images)):
            try:
                seen = signature(images[i])
            except ImageError:
                seen = None
            if seen is not None:
                places.append((split, i))
                signatures.append(seen)
            tick()
    found = near_duplicates(np.stack(signatures)) if signatures else []
    return [Pair(places[i], places[j], likeness) for i, j, likeness in found]


def signature(image_CHW: Tensor) -> np.ndarray | None:
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


def near_duplicates(signatures: np.ndarray, block: int = 2048) -> list[tuple[int, int, float]]:
    """All pairs (i < j) of signatures (n, 256) that are copies, with their likeness, the most alike first.

    Every pair is compared: first in the 64 directions in which these images differ most, where a distance is never
    longer than in all 256, then in full. No pair is lost to the first look.
    """
    fine = unit(torch.from_numpy(signatures.astype(np.float32)))
    inside = unit(fine.view(-1, SIDE, SIDE)[:, 4:12, 4:12].flatten(1))
    _, directions = torch.linalg.eigh(fine.T @ fine)
    coarse = fine @ directions[:, -KEPT:]
    half = coarse.square().sum(1, keepdim=True) / 2
    one = torch.ones_like(half)
    queries, keys = torch.cat([coarse, -half, one], 1), torch.cat([coarse, one, -half], 1)  # product: -distance² / 2
    least = ALIKE - 1 - 1e-4  # -distance² / 2 of unit vectors at this cosine
    found: list[tuple[int, int, float]] = []
    for at in range(0, len(fine), block):
        for to in range(at, len(fine), block):
            near = queries[at : at + block] @ keys[to : to + block].T
            if near.max() < least and at != to:
                continue
            i, j = (near >= least).nonzero(as_tuple=True)
            i, j = i + at, j + to
            i, j = i[i < j], j[i < j]
            likeness = (fine[i] * fine[j]).sum(1)
            sure = (likeness >= ALIKE) & ((inside[i] * inside[j]).sum(1) >= ALIKE_INSIDE)
            found += zip(i[sure].tolist(), j[sure].tolist(), likeness[sure].tolist(), strict=True)
    return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))


def unit(vectors: Tensor) -> Tensor:
    """Each row less its mean, at length one."""
    centred = vectors - vectors.mean(1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-6)
