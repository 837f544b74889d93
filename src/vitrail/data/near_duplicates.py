"""Near-duplicates: the same picture after re-encoding, resizing, recoloring or slight noise.

The signature of an image is its 16x16 gray values minus a 5x5 box blur. Different pictures of similar subjects share
their coarse brightness, which the blur removes; copies of one picture share the fine structure as well. The inner 8x8
values are also compared alone, because two pictures can share just a frame. The thresholds were chosen on 20,000
CIFAR-10 training images by inspecting pairs (docs/log.md). A crop of more than a row or two is not detected.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.bands import IMAGE_CHANNELS
from vitrail.data.decode import ImageError
from vitrail.data.images import Images

SIGNATURE_SIZE = 16
INNER = slice(4, 12)
MIN_SIMILARITY = 0.92  # cosine of near-duplicates: JPEG at quality 30 and gray instead of color stay above
MIN_INNER_SIMILARITY = 0.90  # the same for the inner 8x8 values
MIN_STD = 2.0  # gray levels; below it the fine structure is noise
MIN_IMAGE_SIZE = 16  # pixels; smaller images, such as 8x8 digits, are too similar to each other
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow
MAX_PAIRS = 8  # an image is paired with at least this many near-duplicates before it and after it
DENSE_PAIRS = 1 << 16  # candidates in a block; above, a full matrix product is cheaper and needs less memory
PREFILTER_DIMENSIONS = 64

IndexPair = tuple[int, int, float]  # i < j, similarity


@dataclass(frozen=True)
class DuplicatePair:
    """Two images that are near-duplicates, each as (split, index in the split)."""

    a: tuple[str, int]
    b: tuple[str, int]
    similarity: float  # cosine of the signatures; 1 for the same fine structure


def find_near_duplicates(
    splits: Mapping[str, Images], tick: Callable[[], object] = lambda: None
) -> list[DuplicatePair]:
    """Returns pairs of exact or near-duplicates within and across the splits, most similar first.

    `tick` is called for each image. Images that are unreadable, flat, or below 16 pixels are in no pair.
    """
    positions: list[tuple[str, int]] = []
    signatures: list[np.ndarray] = []
    for split, images in splits.items():
        for i in range(len(images)):
            try:
                signature = compute_signature(images[i])
            except ImageError:
                signature = None
            if signature is not None:
                positions.append((split, i))
                signatures.append(signature)
            tick()
    if not signatures:
        return []
    pairs = near_duplicate_pairs(np.stack(signatures), [split for split, _ in positions])
    return [DuplicatePair(positions[i], positions[j], similarity) for i, j, similarity in pairs]


def compute_signature(image_CHW: Tensor) -> np.ndarray | None:
    """Returns the fine structure of pixels (C, h, w) as int8 (256,); None if the image is too small or flat.

    That of bands is the structure of their mean, which is scaled from its smallest to its largest value.
    """
    if min(image_CHW.shape[-2:]) < MIN_IMAGE_SIZE:
        return None
    if image_CHW.dtype == torch.uint8 and len(image_CHW) in IMAGE_CHANNELS:
        weights = torch.tensor(LUMA if len(image_CHW) == 3 else (1.0,)).view(-1, 1, 1)
        gray_1HW = (image_CHW.float() * weights).sum(0, keepdim=True)
    else:
        gray_1HW = bands_to_gray(image_CHW).float()
    small = F.interpolate(gray_1HW[None], (SIGNATURE_SIZE, SIGNATURE_SIZE), mode="bilinear", antialias=True)
    fine = small - F.avg_pool2d(F.pad(small, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    if min(fine.std(), fine[..., INNER, INNER].std()) < MIN_STD:
        return None
    return (fine * (127 / fine.abs().max())).round().to(torch.int8).flatten().numpy()


def bands_to_gray(pixels: Tensor) -> Tensor:
    """Returns the mean of bands as uint8 (1, h, w), scaled from its smallest to its largest value."""
    gray_1hw = pixels.float().mean(0, keepdim=True)
    low, high = gray_1hw.min(), gray_1hw.max()
    return (255 * (gray_1hw - low) / (high - low).clamp(min=1e-30)).round().to(torch.uint8)


def near_duplicate_pairs(signatures: np.ndarray, groups: Sequence[str] = (), block_size: int = 2048) -> list[IndexPair]:
    """Returns the pairs (i, j, similarity), i < j, of signatures (n, 256) that are similar, most similar first.

    Candidates come from a prefilter in the 64 principal directions, where a distance is never longer than in all 256,
    so none is missed. All pairs are returned, unless many images are similar to each other, as from a fixed camera:
    then at least the first 8 near-duplicates before and after an image, of each of the `groups` (n,).
    """
    group_names = list(dict.fromkeys(groups)) or [""]
    labels = groups or group_names * len(signatures)
    group = torch.tensor([group_names.index(name) for name in labels], dtype=torch.int64)
    n_after, n_before = (torch.zeros(len(signatures), len(group_names), dtype=torch.int64) for _ in range(2))
    full = center_and_normalize(torch.from_numpy(signatures.astype(np.float32)))
    square = full.view(-1, SIGNATURE_SIZE, SIGNATURE_SIZE)
    inner = center_and_normalize(square[:, INNER, INNER].flatten(1))
    queries, keys = make_prefilter(full)
    threshold = MIN_SIMILARITY - 1 - 1e-4  # -distance² / 2 of unit vectors with this cosine
    pairs: list[IndexPair] = []
    for row in range(0, len(full), block_size):
        for column in range(row, len(full), block_size):
            scores = queries[row : row + block_size] @ keys[column : column + block_size].T
            if scores.max() < threshold and row != column:
                continue
            i, j = (scores >= threshold).triu(1 + row - column).nonzero(as_tuple=True)
            if len(i) > DENSE_PAIRS:
                rows, columns = slice(row, row + block_size), slice(column, column + block_size)
                similarity, inner_similarity = ((v[rows] @ v[columns].T)[i, j] for v in (full, inner))
            else:
                similarity, inner_similarity = ((v[i + row] * v[j + column]).sum(1) for v in (full, inner))
            passed = (similarity >= MIN_SIMILARITY) & (inner_similarity >= MIN_INNER_SIMILARITY)
            i, j, similarity = i[passed] + row, j[passed] + column, similarity[passed]
            selected = select_first(i, j, group, n_after, n_before)
            pairs += zip(i[selected].tolist(), j[selected].tolist(), similarity[selected].tolist(), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))


def make_prefilter(unit_vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Returns queries and keys (n, 66) whose products are -distance² / 2 in the principal directions."""
    _, directions = torch.linalg.eigh(unit_vectors.T @ unit_vectors)
    coarse = unit_vectors @ directions[:, -PREFILTER_DIMENSIONS:]
    half = coarse.square().sum(1, keepdim=True) / 2
    ones = torch.ones_like(half)
    return torch.cat([coarse, -half, ones], 1), torch.cat([coarse, ones, -half], 1)


def select_first(i: Tensor, j: Tensor, group: Tensor, n_after: Tensor, n_before: Tensor) -> Tensor:
    """Returns which pairs to keep, bool (pairs,): those among the first 8 of either image and group.

    `n_after` and `n_before` (n, groups) count the pairs of each image so far; they are updated.
    """
    (rows, row), (columns, column) = (unique_inverse(indices, len(group)) for indices in (i, j))
    is_pair = torch.zeros(len(rows), len(columns), dtype=torch.bool)
    is_pair[row, column] = True
    is_first = is_among_first(is_pair, rows, group[columns], n_after)
    is_first |= is_among_first(is_pair.T, columns, group[rows], n_before).T
    return is_first[row, column]


def is_among_first(is_pair: Tensor, rows: Tensor, column_group: Tensor, counts: Tensor) -> Tensor:
    """Returns where a row of `is_pair` (r, c) has at most 8 pairs so far with columns of the group; updates `counts`.

    Entries of `is_first` without a pair have no meaning.
    """
    is_first = torch.zeros_like(is_pair)
    for index in sorted(set(column_group.tolist())):
        columns = column_group == index
        running_count = is_pair[:, columns].cumsum(1) + counts[rows, index].unsqueeze(1)
        is_first[:, columns] = running_count <= MAX_PAIRS
        counts[rows, index] = running_count[:, -1]
    return is_first


def unique_inverse(indices: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Returns the sorted distinct indices below `n`, and the position of each index among them, without sorting."""
    occurs = torch.zeros(n, dtype=torch.bool)
    occurs[indices] = True
    return occurs.nonzero().flatten(), (occurs.cumsum(0) - 1)[indices]


def center_and_normalize(vectors: Tensor) -> Tensor:
    """Returns each row minus its mean, scaled to length one."""
    centered = vectors - vectors.mean(1, keepdim=True)
    return centered / centered.norm(dim=1, keepdim=True).clamp_min(1e-6)
