"""Measures of faithfulness: functions of a map and the model that return one number per image.

Patches are removed from the token sequence (`TokenInputs.logits_of_patches`), so the model never sees an artificial
replacement, except in `deletion_baseline`. Shapes: S points of a curve, G groups of patches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vitrail.explanation.inputs import TokenInputs
from vitrail.intervals import Interval, cluster_interval, t_interval, two_way_interval


@dataclass(frozen=True)
class Measure:
    """The name of a measure in tables and figures, what it measures, and which direction is better.

    `interval` takes the values of a method, of which only those along some axes are independent: images (N,),
    composites (composites, members), or shuffled models and images (kinds, draws, N). `chance` is the value of every
    map that is the same for all classes.
    """

    label: str
    description: str
    better: str  # lower or higher
    interval: Callable[[np.ndarray, float], Interval | None] = t_interval
    chance: float | None = None


MEASURES: dict[str, Measure] = {
    "deletion": Measure(
        "deletion AUC",
        "area under the curve of the class's calibrated probability while patches are removed, most relevant first "
        "(Petsiuk et al. 2018)",
        "lower",
    ),
    "insertion": Measure(
        "insertion AUC",
        "the same while patches are removed, least relevant first (Petsiuk et al. 2018)",
        "higher",
    ),
    "deletion_baseline": Measure(
        "deletion AUC, baseline",
        "deletion AUC with patches replaced by the mean color instead of removed",
        "lower",
    ),
    "saco": Measure(
        "SaCo",
        "salience-guided faithfulness coefficient, -1 to 1: whether groups of patches with more relevance cost more "
        "probability (Wu et al. 2024)",
        "higher",
    ),
    "mosaic": Measure(
        "grid pointing game",
        "fraction of the positive relevance on the image of the class in a mosaic of four; chance: 0.25 "
        "(Rao et al. 2022)",
        "higher",
        cluster_interval,
        chance=0.25,
    ),
    "pair": Measure(
        "pair",
        "fraction of the positive relevance on the object of the class, of two side by side; chance: 0.5",
        "higher",
        cluster_interval,
        chance=0.5,
    ),
    "randomization": Measure(
        "randomization",
        "absolute rank correlation with the maps of models with shuffled weights (Adebayo et al. 2018)",
        "lower",
        two_way_interval,
    ),
}


def rank_patches(map_BP: np.ndarray, seed: int = 0) -> np.ndarray:
    """Patch indices from the most to the least relevant, (B, P); ties are in random order."""
    tie_break_BP = np.random.default_rng(seed).random(map_BP.shape)
    order_BP: np.ndarray = np.lexsort((tie_break_BP, -map_BP), axis=1)
    return order_BP


def remaining_counts(patches: int, steps: int) -> list[int]:
    """Returns the remaining patches at each point of a curve: from all to one, since a mean pool needs one."""
    return [int(n) for n in np.linspace(patches, 1, min(steps, patches - 1) + 1).round()] if patches > 1 else [1]


@torch.inference_mode()
def perturbation_curve(inputs: TokenInputs, order_BP: np.ndarray, steps: int, use_baseline: bool = False) -> np.ndarray:
    """Returns the probability of the explained class while patches are removed in this order, (B, S).

    With `use_baseline` the tokens of an image of the mean color replace them.
    """
    order = torch.from_numpy(order_BP).to(inputs.x_BTD.device)
    inputs.fix_target(inputs.intact_logits)
    points = []
    for remaining in remaining_counts(inputs.patch_count, steps):
        removed = inputs.patch_count - remaining
        removed_BP, keep_BP = order[:, :removed], order[:, removed:]
        if not removed:
            logits_BY = inputs.intact_logits  # the first point of every curve, computed once
        elif use_baseline:
            logits_BY = inputs.logits(replace_by_baseline(inputs, removed_BP))
        else:
            logits_BY = inputs.logits_of_patches(keep_BP.sort(dim=1).values)
        points.append(inputs.probability(logits_BY))
    curve_BS: np.ndarray = torch.stack(points, dim=1).double().cpu().numpy()
    return curve_BS


def replace_by_baseline(inputs: TokenInputs, patches_BP: Tensor) -> Tensor:
    """Returns the tokens with some patches replaced by those of the baseline, (B, T, D)."""
    index_BPD = (patches_BP + inputs.vit.config.prefix_tokens).unsqueeze(-1).expand(-1, -1, inputs.x_BTD.shape[-1])
    baseline_BTD = inputs.baseline_1TD.expand(len(inputs.x_BTD), -1, -1)
    return inputs.x_BTD.scatter(1, index_BPD, baseline_BTD.gather(1, index_BPD))


def deletion_curve(inputs: TokenInputs, order_BP: np.ndarray, steps: int) -> np.ndarray:
    """Returns the perturbation curve with the most relevant patches removed first."""
    return perturbation_curve(inputs, order_BP, steps)


def insertion_curve(inputs: TokenInputs, order_BP: np.ndarray, steps: int) -> np.ndarray:
    """Returns the curve with the least relevant patches removed first: insertion, read from right to left."""
    return perturbation_curve(inputs, order_BP[:, ::-1].copy(), steps)


def baseline_deletion_curve(inputs: TokenInputs, order_BP: np.ndarray, steps: int) -> np.ndarray:
    """Returns the deletion curve with patches replaced by the baseline."""
    return perturbation_curve(inputs, order_BP, steps, use_baseline=True)


CURVES: dict[str, Callable[[TokenInputs, np.ndarray, int], np.ndarray]] = {  # measures that are areas under a curve
    "deletion": deletion_curve,
    "insertion": insertion_curve,
    "deletion_baseline": baseline_deletion_curve,
}


def area_under_curve(curve_BS: np.ndarray, remaining: Sequence[int]) -> np.ndarray:
    """Returns the area under each curve by the trapezoidal rule, (B,), for a total width of 1.

    `remaining` is the number of patches at each point. The steps differ in width where the number of patches is not a
    multiple of the number of steps.
    """
    if curve_BS.shape[1] == 1:
        return curve_BS[:, 0]
    widths = -np.diff(remaining) / (remaining[0] - remaining[-1])
    area_B: np.ndarray = (curve_BS[:, 1:] + curve_BS[:, :-1]) @ widths / 2
    return area_B


@torch.inference_mode()
def saco(inputs: TokenInputs, map_BP: np.ndarray, order_BP: np.ndarray, groups: int = 8) -> np.ndarray:
    """Returns the salience-guided faithfulness coefficient (Wu et al. 2024, arXiv 2404.01415), from -1 to 1: (B,).

    Patches are grouped by rank, and each group is removed alone. A pair of groups has the weight of their difference in
    relevance; it counts +1 where the group with more relevance costs more probability, else -1. NaN where removing a
    group leaves no patch.
    """
    order = torch.from_numpy(order_BP).to(inputs.x_BTD.device)
    intact_B = inputs.probability(inputs.intact_logits)
    bounds = np.linspace(0, inputs.patch_count, min(groups, inputs.patch_count) + 1).round().astype(int)
    relevance, drop = [], []
    for low, high in pairwise(bounds):
        keep_BP = torch.cat([order[:, :low], order[:, high:]], dim=1).sort(dim=1).values
        if keep_BP.shape[1] == 0:
            return np.full(len(map_BP), np.nan)
        drop.append((intact_B - inputs.probability(inputs.logits_of_patches(keep_BP))).cpu().numpy())
        relevance.append(np.take_along_axis(map_BP, order_BP[:, low:high], axis=1).sum(axis=1))
    return saco_from_groups(np.stack(relevance, axis=1), np.stack(drop, axis=1))


def saco_from_groups(relevance_BG: np.ndarray, drop_BG: np.ndarray) -> np.ndarray:
    """SaCo from each group's relevance and its drop in probability, (B,); 0 where all groups have equal relevance."""
    first, second = np.triu_indices(relevance_BG.shape[1], k=1)
    difference = relevance_BG[:, first] - relevance_BG[:, second]
    sign = np.where(drop_BG[:, first] >= drop_BG[:, second], 1.0, -1.0)
    total = np.abs(difference).sum(axis=1)
    zeros = np.zeros(len(difference))
    coefficient_B: np.ndarray = np.divide((difference * sign).sum(axis=1), total, out=zeros, where=total > 0)
    return coefficient_B


def positive_share(map_BP: np.ndarray, object_BP: np.ndarray, other_BP: np.ndarray, chance: float) -> np.ndarray:
    """Returns the positive relevance on the object, as a fraction of that on all objects: (B,).

    A map without positive relevance on either gets the chance value.
    """
    positive = np.maximum(map_BP, 0)
    on_object, on_other = (positive * object_BP).sum(axis=1), (positive * other_BP).sum(axis=1)
    total = on_object + on_other
    share_B: np.ndarray = np.divide(on_object, total, out=np.full(len(total), chance), where=total > 0)
    return share_B


def rank_correlation(first_BP: np.ndarray, second_BP: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each pair of maps, (B,): 1 for two constant maps, 0 for one constant map."""
    from scipy.stats import rankdata

    a, b = rankdata(first_BP, axis=1), rankdata(second_BP, axis=1)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    both_constant = ((a**2).sum(axis=1) == 0) & ((b**2).sum(axis=1) == 0)
    correlation_B = np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(a)), where=scale > 0)
    return np.where(both_constant, 1.0, correlation_B)
