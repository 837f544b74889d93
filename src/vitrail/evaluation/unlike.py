"""Fits how unlike an image is: centers and covariance of the features of labeled images, and quantiles of distances.

The quantiles are those of images that were left out: each fold is measured with a fit on the other folds. Shapes: N
images, D features, K centers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from vitrail.classifier import Classifier
from vitrail.data.decode import ImageError
from vitrail.data.images import Images
from vitrail.evaluation.features import extract_features
from vitrail.weights.unlike import Unlike, UnlikeFacts

MIN_IMAGES = 30
MIN_CLASS_IMAGES = 5  # images of each class, else all classes share one center
FOLDS = 5
MAX_QUANTILES = 257  # a step of 0.4%
MIN_GAP = 1e-5  # between quantiles, relative to the largest distance: a quantile must be a function of the distance


@dataclass(frozen=True)
class UnlikeFit:
    """The fit and the distances of the images when they were left out, or the reason why there is none."""

    fit: Unlike | None
    reason: str | None = None
    distances: np.ndarray | None = None  # (N,)


def fit_unlike_on(
    classifier: Classifier,
    images: Images,
    *,
    fitted_on: str = "validation",
    batch_size: int = 64,
    workers: int | None = None,
    skip_unreadable: bool = False,
    on_batch: Callable[[int], object] = lambda images: None,
) -> UnlikeFit:
    """Returns the fit on labeled images, after computing their features.

    Raises `ImageError` for an unreadable image; with `skip_unreadable` it is left out.
    """
    errors: list[ImageError] = []
    features = extract_features(
        classifier,
        images,
        batch_size=batch_size,
        workers=workers,
        cache=False,
        on_batch=on_batch,
        on_error=errors.append if skip_unreadable else None,
    )
    readable = images.exclude(errors)
    return fit_unlike(features, np.asarray(readable.labels), readable.groups, fitted_on)


def fit_unlike(
    features_ND: np.ndarray, labels: np.ndarray, groups: Sequence[str] | None = None, fitted_on: str = "validation"
) -> UnlikeFit:
    """Returns the fit for images with one class, labels (N,), or with several labels, (N, Y).

    There is a center for each class if each has `MIN_CLASS_IMAGES` images; otherwise, and with several labels, there is
    one. Images of a `group` are in one fold.
    """
    folds = assign_folds(len(features_ND), groups)
    if len(features_ND) < MIN_IMAGES:
        return UnlikeFit(None, f"{len(features_ND)} images are too few, at least {MIN_IMAGES} are needed")
    if len(np.unique(folds)) < 2:
        return UnlikeFit(None, "all images are of one group")
    features_ND = features_ND.astype(np.float64)
    labels = choose_centers(labels)
    distances = np.zeros(len(features_ND))
    for fold in np.unique(folds):
        left_out = folds == fold
        part = fit_centers(features_ND[~left_out], labels[~left_out])
        distances[left_out] = part(torch.from_numpy(features_ND[left_out])).numpy()
    fit = fit_centers(features_ND, labels)
    facts = replace(fit.facts, fitted_on=fitted_on, distances=find_edges(distances))
    return UnlikeFit(replace(fit, facts=facts), distances=distances)


def assign_folds(images: int, groups: Sequence[str] | None) -> np.ndarray:
    """Returns the fold of each image, (N,): the same for the images of a group."""
    units = np.arange(images) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    order = np.random.default_rng(0).permutation(units.max(initial=0) + 1)
    folds: np.ndarray = order[units] % FOLDS
    return folds


def choose_centers(labels: np.ndarray) -> np.ndarray:
    """Returns the number of the center of each image, (N,)."""
    if labels.ndim == 2:
        return np.zeros(len(labels), dtype=int)
    _, center_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    is_shared = counts.min(initial=MIN_CLASS_IMAGES) < MIN_CLASS_IMAGES
    return np.zeros(len(labels), dtype=int) if is_shared else center_of


def fit_centers(features_ND: np.ndarray, center_of: np.ndarray) -> Unlike:
    """Returns the means, and the whitening of the covariance around them; its facts have no quantiles yet."""
    centers = np.unique(center_of)
    means_KD = np.stack([features_ND[center_of == each].mean(0) for each in centers])
    residuals_ND = features_ND - means_KD[np.searchsorted(centers, center_of)]
    values, vectors = np.linalg.eigh(shrink_covariance(residuals_ND))
    floor = max(float(values[-1]), 1e-12) * 1e-9  # a direction without variance must not be divided by zero
    whitening_DD = vectors / np.sqrt(np.maximum(values, floor))
    mean_D = features_ND.mean(0)
    facts = UnlikeFacts(images=len(features_ND), centers=len(centers))
    tensors = (mean_D, whitening_DD, (means_KD - mean_D) @ whitening_DD)
    return Unlike(facts, *(torch.from_numpy(each).float() for each in tensors))


def shrink_covariance(residuals_ND: np.ndarray) -> np.ndarray:
    """Returns the covariance of residuals of mean zero, shrunken towards a multiple of the identity, (D, D).

    The weight is that of Ledoit & Wolf 2004, which makes the covariance of few images invertible.
    """
    n, width = residuals_ND.shape
    covariance_DD = residuals_ND.T @ residuals_ND / n
    scale = np.trace(covariance_DD) / width
    squares_ND = residuals_ND**2
    spread = ((covariance_DD - scale * np.eye(width)) ** 2).sum() / width
    noise = ((squares_ND.T @ squares_ND).sum() / n - (covariance_DD**2).sum()) / n / width
    weight = min(noise, spread) / spread if spread > 0 else 0.0
    shrunken: np.ndarray = (1 - weight) * covariance_DD + weight * scale * np.eye(width)
    return shrunken


def find_edges(distances: np.ndarray) -> tuple[float, ...]:
    """Returns equally spaced quantiles of distances, which increase strictly."""
    edges = np.quantile(distances, np.linspace(0, 1, min(MAX_QUANTILES, len(distances))))
    gap = MIN_GAP * max(float(edges[-1]), 1e-6)
    steps = gap * np.arange(len(edges))
    increasing = np.maximum.accumulate(edges - steps) + steps  # at least `gap` apart
    return tuple(float(f"{each:.9g}") for each in increasing)
