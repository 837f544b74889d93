"""How far a map can be believed: measures, each a number per image.

Patches are left out for real (`Scene.logits_of`), so nothing is judged on pictures that the model has never been near.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from vitrail.explanation.scene import Scene


@dataclass(frozen=True)
class Measure:
    """What a number says, and which way is better."""

    about: str
    better: str  # lower or higher


MEASURES: dict[str, Measure] = {
    "deletion": Measure("probability while the most relevant patches go first", "lower"),
    "insertion": Measure("probability while the most relevant patches stay longest", "higher"),
    "deletion_grey": Measure("deletion with patches painted in the mean colour instead of left out", "lower"),
    "saco": Measure("whether groups of patches cost as much probability as the map claims (-1 to 1)", "higher"),
    "mosaic": Measure("part of the positive evidence on the asked one of four images (chance 0.25)", "higher"),
    "pair": Measure("part of the positive evidence on the asked one of two objects (chance 0.5)", "higher"),
    "randomised": Measure("rank correlation with the maps of the model with shuffled weights", "lower"),
}


def ranking(map_BP: np.ndarray, seed: int = 0) -> np.ndarray:
    """Patches from the most to the least relevant, (B, P); ties fall by lot, not by place."""
    lot_BP = np.random.default_rng(seed).random(map_BP.shape)
    order: np.ndarray = np.lexsort((lot_BP, -map_BP), axis=1)
    return order


def left(patches: int, steps: int) -> list[int]:
    """How many patches are left at each point of a curve: from all to one, which a mean over patches needs."""
    return [int(n) for n in np.linspace(patches, 1, min(steps, patches - 1) + 1).round()] if patches > 1 else [1]


@torch.inference_mode()
def curve(scene: Scene, order_BP: np.ndarray, steps: int, painted: bool = False) -> np.ndarray:
    """The score's probability while patches go in this order, (B, steps + 1).

    They are left out, or painted in the mean colour.
    """
    order = torch.from_numpy(order_BP).to(scene.x_BTD.device)
    weights_BY = scene.settle(scene.logits(scene.x_BTD))
    points = []
    for n in left(scene.patches, steps):
        gone, keep = order[:, : scene.patches - n], order[:, scene.patches - n :].sort(dim=1).values
        if painted:
            index = (gone + scene.vit.config.prefix_tokens).unsqueeze(-1).expand(-1, -1, scene.x_BTD.shape[-1])
            grey_BTD = scene.grey_1TD.expand(len(scene.x_BTD), -1, -1)
            logits_BY = scene.logits(scene.x_BTD.scatter(1, index, grey_BTD.gather(1, index)))
        else:
            logits_BY = scene.logits_of(keep)
        points.append((logits_BY.softmax(dim=1) * weights_BY).sum(dim=1))
    curve_BS: np.ndarray = torch.stack(points, dim=1).double().cpu().numpy()
    return curve_BS


def area(curve_BS: np.ndarray) -> np.ndarray:
    """The mean height of each curve, (B,), by the trapezium rule."""
    areas: np.ndarray = (
        (curve_BS[:, 1:] + curve_BS[:, :-1]).mean(axis=1) / 2 if curve_BS.shape[1] > 1 else curve_BS[:, 0]
    )
    return areas


@torch.inference_mode()
def saco(scene: Scene, map_BP: np.ndarray, order_BP: np.ndarray, groups: int = 8) -> np.ndarray:
    """Salience-guided faithfulness, (B,), from -1 to 1 (Wu et al. 2024, arXiv 2404.01415).

    Patches are put into groups by rank; each group is left out alone. A pair of groups counts by how far the map
    claims they differ: for the map where the one it holds higher costs more probability, against it elsewhere.
    """
    order = torch.from_numpy(order_BP).to(scene.x_BTD.device)
    logits_BY = scene.logits(scene.x_BTD)
    weights_BY = scene.settle(logits_BY)
    whole_B = (logits_BY.softmax(dim=1) * weights_BY).sum(dim=1)
    bounds = np.linspace(0, scene.patches, min(groups, scene.patches) + 1).round().astype(int)
    claimed, cost = [], []
    for low, high in pairwise(bounds):
        keep = torch.cat([order[:, :low], order[:, high:]], dim=1).sort(dim=1).values
        if keep.shape[1] == 0:
            return np.full(len(map_BP), np.nan)
        cost.append((whole_B - (scene.logits_of(keep).softmax(dim=1) * weights_BY).sum(dim=1)).cpu().numpy())
        claimed.append(np.take_along_axis(map_BP, order_BP[:, low:high], axis=1).sum(axis=1))
    return agreement(np.stack(claimed, axis=1), np.stack(cost, axis=1))


def agreement(claimed_BG: np.ndarray, cost_BG: np.ndarray) -> np.ndarray:
    """SaCo from what each group claims and what it costs, (B,); 0 where the map claims nothing."""
    first, second = np.triu_indices(claimed_BG.shape[1], k=1)
    gap = claimed_BG[:, first] - claimed_BG[:, second]
    right = np.where(cost_BG[:, first] >= cost_BG[:, second], 1.0, -1.0)
    total = np.abs(gap).sum(axis=1)
    found: np.ndarray = np.divide((gap * right).sum(axis=1), total, out=np.zeros(len(gap)), where=total > 0)
    return found


def share(map_BP: np.ndarray, own_BP: np.ndarray, other_BP: np.ndarray, chance: float) -> np.ndarray:
    """Part of the positive evidence on the own patches of what is on own and others together, (B,).

    A map without positive evidence says nothing, and gets the chance value.
    """
    positive = np.maximum(map_BP, 0)
    own, other = (positive * own_BP).sum(axis=1), (positive * other_BP).sum(axis=1)
    total = own + other
    found: np.ndarray = np.divide(own, total, out=np.full(len(total), chance), where=total > 0)
    return found


def rank_correlation(a_BP: np.ndarray, b_BP: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each map with its counterpart, (B,); 1 for two even maps, 0 where one is even."""
    from scipy.stats import rankdata

    a, b = rankdata(a_BP, axis=1), rankdata(b_BP, axis=1)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    both_even = ((a**2).sum(axis=1) == 0) & ((b**2).sum(axis=1) == 0)
    found = np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(a)), where=scale > 0)
    return np.where(both_even, 1.0, found)
