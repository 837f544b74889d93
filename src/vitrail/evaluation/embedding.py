"""Pooled features of images, their 2-D embedding (t-SNE or PCA), and the classes of nearest neighbors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.batching import BatchHalver
from vitrail.classifier import Classifier

MIN_TSNE_IMAGES = 60
MAX_COMPONENTS = 50  # principal components that t-SNE starts from
BATCH_SIZE = 250


@torch.inference_mode()
def pooled_features(classifier: Classifier, pixels_nCHW: Tensor) -> np.ndarray:
    """Returns the input of the head for uint8 pixels of the model's size: (n, D)."""
    halve = BatchHalver()
    features: list[Tensor] = []
    for pixels in torch.split(pixels_nCHW, BATCH_SIZE):
        features += halve(lambda part: classifier.features(part).cpu(), pixels)
    return torch.cat(features).numpy()


def project_to_2d(features_nD: np.ndarray, seed: int = 0) -> tuple[np.ndarray, str]:
    """Returns a position in [0, 1] x [0, 1] for each vector, (n, 2), and a description of the projection.

    The projection is t-SNE for at least `MIN_TSNE_IMAGES` vectors and PCA for fewer.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    n = len(features_nD)
    centered = features_nD - features_nD.mean(axis=0)
    spread = np.linalg.norm(centered, axis=1).mean()
    if n < 3 or spread == 0:
        line = np.stack([np.linspace(0, 1, n), np.full(n, 0.5)], axis=1)
        return line, "on a line, since there are too few different images"
    components = min(MAX_COMPONENTS, n, centered.shape[1])
    reduced = PCA(components, random_state=seed).fit_transform(centered / spread)
    method = "PCA"
    if n >= MIN_TSNE_IMAGES:
        perplexity = min(30.0, n / 5)
        reduced = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, max_iter=500).fit_transform(reduced)
        method = f"t-SNE of the first {components} principal components, perplexity {perplexity:g}"
    positions = np.zeros((n, 2))
    positions[:, : min(2, reduced.shape[1])] = reduced[:, :2]
    low, high = positions.min(axis=0), positions.max(axis=0)
    return (positions - low) / np.maximum(high - low, 1e-9), method


def neighbor_purity(
    features_nD: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], k: int = 10
) -> list[dict[str, Any]]:
    """Returns for each class the fraction of its images' `k` nearest neighbors (by cosine) that have the same class.

    Each row also has the most frequent other class among these neighbors, and its fraction.
    """
    k = min(k, len(labels) - 1)
    if k < 1:
        return []
    unit = features_nD / np.maximum(np.linalg.norm(features_nD, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    neighbor_labels = labels[np.argpartition(-cosine, k - 1, axis=1)[:, :k]]
    rows = []
    for label in np.unique(labels):
        members = labels == label
        counts = np.bincount(neighbor_labels[members].ravel(), minlength=len(classes))
        fractions = counts / (k * members.sum())
        others = fractions.copy()
        others[label] = -1
        rows.append(
            {
                "class": classes[label],
                "images": int(members.sum()),
                "same_class": float(fractions[label]),
                "next_class": classes[int(others.argmax())] if others.max() > 0 else None,
                "next_class_fraction": float(max(others.max(), 0)),
            }
        )
    return rows
