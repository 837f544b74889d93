"""The pooled vectors of images: which images the model holds alike, and a flat map of them."""

from typing import Any

import numpy as np
import torch

from vitrail.classifier import Classifier
from vitrail.data import Images


@torch.inference_mode()
def pooled_features(classifier: Classifier, images: Images, chosen: np.ndarray, batch: int = 250) -> np.ndarray:
    """The vector that the head gets for each of these images, (n, D)."""
    found = []
    for at in range(0, len(chosen), batch):
        found.append(classifier.features(images.load_batch(classifier.preprocess, chosen[at : at + batch])).cpu())
    return torch.cat(found).numpy()


def project_to_2d(vectors_nD: np.ndarray, seed: int = 0) -> tuple[np.ndarray, str]:
    """A place in the plane for each vector, from 0 to 1, and what made it: t-SNE, or PCA for few images."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    n = len(vectors_nD)
    centred = vectors_nD - vectors_nD.mean(axis=0)
    spread = np.linalg.norm(centred, axis=1).mean()
    if n < 3 or spread == 0:
        places = np.stack([np.linspace(0, 1, n), np.full(n, 0.5)], axis=1)
        return places, "in a row: there are too few different images"
    reduced = PCA(min(50, n, centred.shape[1]), random_state=seed).fit_transform(centred / spread)
    made_by = "PCA"
    if n >= 60:
        perplexity = min(30.0, n / 5)
        reduced = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, max_iter=500).fit_transform(reduced)
        made_by = f"t-SNE of the first {min(50, n, centred.shape[1])} principal components, perplexity {perplexity:g}"
    places = np.zeros((n, 2))
    places[:, : min(2, reduced.shape[1])] = reduced[:, :2]
    low, high = places.min(axis=0), places.max(axis=0)
    return (places - low) / np.maximum(high - low, 1e-9), made_by


def neighbor_purity(
    vectors_nD: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], k: int = 10
) -> list[dict[str, Any]]:
    """For each class the part of its images' `k` nearest others (by cosine) that are of it, and the next class."""
    k = min(k, len(labels) - 1)
    if k < 1:
        return []
    unit = vectors_nD / np.maximum(np.linalg.norm(vectors_nD, axis=1, keepdims=True), 1e-12)
    near = unit @ unit.T
    np.fill_diagonal(near, -np.inf)
    neighbours = labels[np.argpartition(-near, k - 1, axis=1)[:, :k]]
    rows = []
    for number in np.unique(labels):
        parts = np.bincount(neighbours[labels == number].ravel(), minlength=len(classes)) / (
            k * (labels == number).sum()
        )
        others = parts.copy()
        others[number] = -1
        rows.append(
            {
                "class": classes[number],
                "images": int((labels == number).sum()),
                "own": float(parts[number]),
                "next": classes[int(others.argmax())] if others.max() > 0 else None,
                "next_part": float(max(others.max(), 0)),
            }
        )
    return rows
