"""Where a map has its mass: on the outermost patches of the photo, or on few patches."""

from collections.abc import Sequence

import numpy as np

from vitrail.explanation.relevance_map import RelevanceMap

MIN_GRID = 4  # patches per edge, to distinguish the border from the center
BORDER_FACTOR = 1.25  # times the border's area: more than that share of a map is suspicious
MOSTLY = 0.5  # more than this share of a map is most of it
FEW_PATCHES = 0.05  # of the patches; at least one patch


def border_mask(content_hw: np.ndarray) -> np.ndarray:
    """Returns True in the outermost ring of the patches that hold the photo, a rectangle of True in (h, w)."""
    mask = np.zeros(content_hw.shape, dtype=bool)
    rows, columns = (np.flatnonzero(content_hw.any(axis=axis)) for axis in (1, 0))
    if len(rows):
        mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        mask[rows[0] + 1 : rows[-1], columns[0] + 1 : columns[-1]] = False
    return mask


def positive_shares(explanation: RelevanceMap) -> np.ndarray:
    """Returns the positive part of a map divided by its sum; the same share for the whole photo if nothing is."""
    positive = np.clip(explanation.map.astype(np.float64), 0, None)
    content_hw = explanation.content_patches
    total = positive.sum()
    shares_hw: np.ndarray = positive / total if total > 0 else content_hw / content_hw.sum()
    return shares_hw


def border_shares(explanation: RelevanceMap) -> tuple[float, float]:
    """Returns the border's share of the positive map, and of the area of the photo."""
    content_hw = explanation.content_patches
    mask_hw = border_mask(content_hw)
    return float(positive_shares(explanation)[mask_hw].sum()), float(mask_hw.sum() / max(content_hw.sum(), 1))


def lies_on_border(explanation: RelevanceMap) -> bool:
    """Whether most of the map is in the outermost ring of patches, and 1.25 times as much as of the area."""
    rows, columns = (int(explanation.content_patches.any(axis=axis).sum()) for axis in (1, 0))
    share, area = border_shares(explanation)
    return min(rows, columns) >= MIN_GRID and share > max(MOSTLY, BORDER_FACTOR * area)


def lies_on_few_patches(explanation: RelevanceMap) -> bool:
    """Whether a twentieth of the photo's patches, at least one, has most of the map."""
    few = max(1, int(FEW_PATCHES * explanation.content_patches.sum()))
    return float(np.sort(positive_shares(explanation).ravel())[-few:].sum()) > MOSTLY


def describe_concentration(explanation: RelevanceMap) -> str:
    """Returns where most of a map is, if that is suspicious: a few words, or nothing."""
    places = {"on the border": lies_on_border(explanation), "on few patches": lies_on_few_patches(explanation)}
    return " and ".join(place for place, is_there in places.items() if is_there)


def describe_all(explanations: Sequence[RelevanceMap]) -> list[str]:
    """Returns a sentence for each suspicious place that has most of some of the maps."""
    tests = (
        (lies_on_border, "the outermost patches: the background may decide"),
        (
            lies_on_few_patches,
            f"at most {FEW_PATCHES:.0%} of the patches: small objects, or patches that the model uses as registers",
        ),
    )
    sentences = []
    for test, place in tests:
        count = sum(map(test, explanations))
        if count:
            sentences.append(f"in {count} of {len(explanations)} images more than half of it is on {place}")
    return sentences
