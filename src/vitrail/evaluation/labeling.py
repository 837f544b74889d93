"""Ranks images without labels by how much their labels would teach: uncertain images that are unlike each other.

Uncertain images have a small margin between the two most probable classes (Scheffer et al. 2001); with several labels,
one label that is almost as probable as not. From those with the smallest margins, greedy k-center takes one after the
other, each as far as possible from those before it (Sener & Savarese 2018, arXiv 1708.00489), so that images that are
almost the same are not all labeled. Shapes: N images, D features, Y classes.
"""

import numpy as np

from vitrail.tasks import MULTI_LABEL, softmax

CANDIDATES = 2  # times the images to choose: those with the smallest margins


def measure_margins(logits_NY: np.ndarray, task: str) -> np.ndarray:
    """Returns how certain the answer for each image is, (N,)."""
    if task == MULTI_LABEL:
        margins_N: np.ndarray = np.abs(logits_NY).min(axis=1)
        return margins_N
    best_NY = np.sort(softmax(logits_NY.astype(np.float64)), axis=1)
    return best_NY[:, -1] - best_NY[:, -2] if best_NY.shape[1] > 1 else best_NY[:, 0]


def rank_for_labeling(logits_NY: np.ndarray, features_ND: np.ndarray, count: int, task: str) -> np.ndarray:
    """Returns the indices of `count` images in the order in which to label them; the first is the least certain."""
    candidates = np.argsort(measure_margins(logits_NY, task), kind="stable")[: CANDIDATES * count]
    unit = features_ND[candidates].astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    chosen: list[int] = []
    distances = np.full(len(unit), np.inf)  # from the nearest chosen image; the first candidate comes first
    for _ in range(min(count, len(unit))):
        i = int(distances.argmax())
        chosen.append(i)
        distances = np.minimum(distances, np.maximum(1 - unit @ unit[i], 0))
        distances[chosen] = -1
    return candidates[chosen]
