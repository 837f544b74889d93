"""What the nearest neighbors say: votes of classes, and means of labels or numbers."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DEFAULT_K, DEFAULT_TEMPERATURE = 20, 0.07  # as in DINO (Caron et al. 2021, arXiv 2104.14294)
MAX_COSINES = 1 << 26  # in memory at once
MAX_CHUNK = 1024  # queries at once


def knn_probabilities(
    bank_ND: np.ndarray,
    labels_N: np.ndarray,
    queries_MD: np.ndarray,
    classes: int,
    k: int = DEFAULT_K,
    temperature: float = DEFAULT_TEMPERATURE,
) -> np.ndarray:
    """Returns the weighted fraction of each class among the `k` nearest vectors of the bank, (M, Y)."""
    labels = torch.from_numpy(labels_N)
    probabilities: list[Tensor] = []
    for nearest, weights in find_neighbors(bank_ND, queries_MD, k, temperature):
        votes = torch.zeros(len(nearest), classes, dtype=torch.float64).scatter_add_(1, labels[nearest], weights)
        probabilities.append(votes / votes.sum(1, keepdim=True))
    return torch.cat(probabilities).numpy()


def knn_means(
    bank_ND: np.ndarray,
    values_NY: np.ndarray,
    queries_MD: np.ndarray,
    k: int = DEFAULT_K,
    temperature: float = DEFAULT_TEMPERATURE,
) -> np.ndarray:
    """Returns the weighted mean of the values of the `k` nearest vectors of the bank, (M, Y): labels, or numbers."""
    values = torch.from_numpy(values_NY.astype(np.float64))
    means: list[Tensor] = []
    for nearest, weights in find_neighbors(bank_ND, queries_MD, k, temperature):
        means.append(torch.einsum("mk,mky->my", weights / weights.sum(1, keepdim=True), values[nearest]))
    return torch.cat(means).numpy()


def find_neighbors(
    bank_ND: np.ndarray, queries_MD: np.ndarray, k: int, temperature: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields indices and weights of the `k` nearest vectors for chunks of the queries, (m, k) each.

    A neighbor has the weight exp(cosine / temperature), as in DINO (arXiv 2104.14294, after Wu et al. 2018, arXiv
    1805.01978), divided by that of the nearest.
    """
    bank = F.normalize(torch.from_numpy(bank_ND), dim=1)
    chunk_size = max(1, min(MAX_CHUNK, MAX_COSINES // max(1, len(bank))))
    for queries in torch.split(F.normalize(torch.from_numpy(queries_MD), dim=1), chunk_size):
        cosine, nearest = (queries @ bank.T).topk(k)
        yield nearest, ((cosine - cosine[:, :1]) / temperature).double().exp()  # the largest is 1: nothing overflows
