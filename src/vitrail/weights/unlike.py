"""How unlike the images of the validation split an image is: the Mahalanobis distance of its features.

The distance is that to the nearest of some centers, under one covariance (Lee et al. 2018, arXiv 1807.03888). Answers
have it as `unlike`, its quantile among the distances of validation images. Shapes: B images, D features, K centers, Q
quantiles.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from torch import Tensor

from vitrail.errors import VitrailError
from vitrail.image_documents import UnlikeDocument
from vitrail.options import check_fields, option

PREFIX = "unlike."  # of the names of the tensors in an artifact
NAMES = ("mean", "whitening", "centers")
UNLIKE_THRESHOLD = 0.95  # quantile from which an image is called unlike: 5% of the validation images reach it
FIT_HINT = "vitrail evaluate MODEL DATA --fit-unlike fits it on the validation images of DATA"


@dataclass(frozen=True)
class UnlikeFacts:
    """What is known about a fit without its tensors."""

    images: int = option(0, "images on which it was fitted", ge=1)
    fitted_on: str = "validation"  # split
    centers: int = option(1, "class means, or one mean of all images", ge=1)
    threshold: float = option(UNLIKE_THRESHOLD, "quantile from which an image is called unlike", gt=0, lt=1)
    distances: tuple[float, ...] = ()  # (Q,), increasing: equally spaced quantiles from the smallest to the largest

    def find_quantiles(self, distances: np.ndarray) -> np.ndarray:
        """Returns the fraction of the validation images that have a smaller distance, interpolated, elementwise.

        The quantile of NaN is NaN.
        """
        quantiles: np.ndarray = np.interp(distances, self.distances, np.linspace(0, 1, len(self.distances)))
        return quantiles

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "distances": list(self.distances)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Returns the facts of an artifact; raises `VitrailError` or `TypeError` for values that cannot be."""
        facts = cls(**{**document, "distances": tuple(document["distances"])})
        check_fields(facts)
        if len(facts.distances) < 2 or not (np.diff(facts.distances) > 0).all():
            raise VitrailError("the distances of its validation images do not increase")
        return facts


@dataclass(frozen=True, eq=False)
class Unlike:
    """Where the features of the validation images lie."""

    facts: UnlikeFacts
    mean: Tensor  # (D,), of all features
    whitening: Tensor  # (D, D): (features - mean) @ whitening has the unit covariance around its center
    centers: Tensor  # (K, D), whitened

    def __call__(self, features_BD: Tensor) -> Tensor:
        """Returns the Mahalanobis distance of each image to its nearest center, (B,) float32, for features (B, D)."""
        device = features_BD.device
        whitened_BD = (features_BD.float() - self.mean.to(device)) @ self.whitening.to(device)
        centers_KD = self.centers.to(device)
        products_BK = whitened_BD @ centers_KD.T
        squared_BK = whitened_BD.square().sum(1, keepdim=True) - 2 * products_BK + centers_KD.square().sum(1)
        return squared_BK.amin(1).clamp(min=0).sqrt()

    def to_tensors(self) -> dict[str, Tensor]:
        """Returns the tensors with their names in an artifact."""
        return {f"{PREFIX}{name}": getattr(self, name) for name in NAMES}


def split_unlike(facts: UnlikeFacts | None, tensors: Mapping[str, Tensor]) -> tuple[Unlike | None, dict[str, Tensor]]:
    """Returns the fit of an artifact, if it has one, and its other tensors.

    Raises `VitrailError` if the tensors are not those of a fit.
    """
    others = {name: each for name, each in tensors.items() if not name.startswith(PREFIX)}
    if facts is None:
        return None, others
    try:
        fit = Unlike(facts, *(tensors[f"{PREFIX}{name}"].float() for name in NAMES))
    except KeyError as error:
        raise VitrailError(f"it lacks the tensor {error.args[0]}") from None
    width = fit.mean.numel()
    shapes = (fit.mean.shape, fit.whitening.shape, fit.centers.shape)
    is_finite = all(bool(getattr(fit, name).isfinite().all()) for name in NAMES)
    if shapes != ((width,), (width, width), (facts.centers, width)) or not is_finite:
        raise VitrailError("its tensors of unlike images do not fit together")
    return fit, others


def describe_unlike(facts: UnlikeFacts | None) -> UnlikeDocument:
    """Returns what an answer says about the quantiles `unlike`: how to read them, or how to get them."""
    if facts is None:
        return {"fitted": False, "hint": FIT_HINT}
    return {"fitted": True, "images": facts.images, "fitted_on": facts.fitted_on, "threshold": facts.threshold}
