"""k-nearest-neighbor classification of features."""

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
    """Returns the weighted fraction of each class among the `k` nearest vectors of the bank, (M, Y).

    A neighbor has the weight exp(cosine / temperature), as in DINO (arXiv 2104.14294, after Wu et al. 2018, arXiv
    1805.01978).
    """
    bank = F.normalize(torch.from_numpy(bank_ND), dim=1)
    labels = torch.from_numpy(labels_N)
    probabilities: list[Tensor] = []
    chunk_size = max(1, min(MAX_CHUNK, MAX_COSINES // max(1, len(bank))))
    for queries in torch.split(F.normalize(torch.from_numpy(queries_MD), dim=1), chunk_size):
        cosine, nearest = (queries @ bank.T).topk(k)
        weights = ((cosine - cosine[:, :1]) / temperature).double().exp()  # the largest is 1, so nothing overflows
        votes = torch.zeros(len(queries), classes, dtype=torch.float64).scatter_add_(1, labels[nearest], weights)
        probabilities.append(votes / votes.sum(1, keepdim=True))
    return torch.cat(probabilities).numpy()
