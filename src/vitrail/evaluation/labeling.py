"""Ranks images without labels by how much their labels would teach: BADGE (Ash et al. 2020, arXiv 1906.03671).

An image is represented by the gradient that its most probable label would have in the weights of the head: its
features, times the difference between the predicted probabilities and that label. Uncertain images have long gradients.
k-means++ then draws images whose gradients are long and unlike those drawn before. Shapes: N images, D features, Y
classes.
"""

import numpy as np

from vitrail.tasks import MULTI_LABEL, TASKS

SEED = 0


def gradient_factors(logits_NY: np.ndarray, task: str) -> np.ndarray:
    """Returns the gradients of the losses of the predicted labels with respect to the logits, (N, Y)."""
    probabilities_NY = TASKS[task].to_probabilities_array(logits_NY.astype(np.float64))
    if task == MULTI_LABEL:
        return probabilities_NY - (probabilities_NY >= 0.5)
    factors_NY: np.ndarray = probabilities_NY - np.eye(logits_NY.shape[1])[logits_NY.argmax(axis=1)]
    return factors_NY


def rank_for_labeling(logits_NY: np.ndarray, features_ND: np.ndarray, count: int, task: str) -> np.ndarray:
    """Returns the indices of `count` images in the order in which to label them; the same images give the same order.

    The gradient is the outer product of its factors, so distances need only their scalar products. The first image has
    the longest gradient; each other is drawn with a probability that is proportional to the squared distance of its
    gradient from the nearest one that was drawn before.
    """
    generator = np.random.default_rng(SEED)
    factors_NY, features_ND = gradient_factors(logits_NY, task), features_ND.astype(np.float64)
    squared_N = (factors_NY**2).sum(axis=1) * (features_ND**2).sum(axis=1)
    chosen: list[int] = []
    nearest_N = np.full(len(logits_NY), np.inf)
    is_left_N = np.ones(len(logits_NY), dtype=bool)
    for _ in range(min(count, len(logits_NY))):
        weights_N = np.where(is_left_N, squared_N if not chosen else nearest_N, 0)
        if not chosen:
            i = int(weights_N.argmax())
        elif weights_N.sum() > 0:
            i = int(generator.choice(len(weights_N), p=weights_N / weights_N.sum()))
        else:  # all that are left are equal to a chosen one
            i = int(np.flatnonzero(is_left_N)[0])
        chosen.append(i)
        is_left_N[i] = False
        products_N = (factors_NY @ factors_NY[i]) * (features_ND @ features_ND[i])
        nearest_N = np.minimum(nearest_N, np.maximum(squared_N + squared_N[i] - 2 * products_N, 0))
    return np.array(chosen, dtype=int)
