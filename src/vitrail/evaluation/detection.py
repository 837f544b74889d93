"""How well a score tells outside images, which belong to no class, from known ones.

A score is higher for images that are more unlike. Shapes: n known images, m outside images, Y classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from vitrail.errors import UsageError
from vitrail.evaluation.outcome import ImageLogits
from vitrail.image_documents import UnlikeEvaluation, UnlikeScore
from vitrail.image_predictions import Predictions
from vitrail.intervals import (
    RESAMPLES,
    Interval,
    normal_quantile,
    percentile_interval,
    wilson_interval,
)
from vitrail.tasks import GRADES, MULTI_LABEL, SINGLE_LABEL, sigmoid, softmax
from vitrail.weights.unlike import describe_unlike

KNOWN_RATE = 0.95  # of the known images pass where the false-positive rate is measured
MAHALANOBIS = "mahalanobis"

# The baselines that need logits alone: maximum probability (Hendrycks & Gimpel 2017) and energy (Liu et al. 2020); of
# several labels, the sum of the labels' energies (Wang et al. 2021).
OF_CLASSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "max_probability": lambda logits_NY: 1 - softmax(logits_NY).max(axis=1),
    "energy": lambda logits_NY: -np.logaddexp.reduce(logits_NY, axis=1),
}
BASELINES: dict[
    str, dict[str, Callable[[np.ndarray], np.ndarray]]
] = {  # by task; predicted numbers have no probabilities
    SINGLE_LABEL: OF_CLASSES,
    GRADES: OF_CLASSES,
    MULTI_LABEL: {
        "max_probability": lambda logits_NY: 1 - sigmoid(logits_NY).max(axis=1),
        "energy": lambda logits_NY: -np.logaddexp(0, logits_NY).sum(axis=1),
    },
}


@dataclass(frozen=True)
class Detection:
    """The scores of known and of outside images."""

    known: np.ndarray  # (n,)
    outside: np.ndarray  # (m,)

    @property
    def auroc(self) -> float:
        """The probability that an outside image has a higher score than a known one; equal scores count half."""
        n, m = len(self.known), len(self.outside)
        ranks = rankdata(np.concatenate([self.known, self.outside]))
        return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))

    @property
    def auroc_interval(self) -> Interval:
        """The 95% interval by the variance of DeLong et al. 1988, on the log-odds of the area.

        Where that variance is zero, it is Wilson's interval for the smaller number of images.
        """
        area, n, m = self.auroc, len(self.known), len(self.outside)
        ranks = rankdata(np.concatenate([self.known, self.outside]))
        above_known = (ranks[n:] - rankdata(self.outside)) / n  # fraction of the known images below each outside one
        below_outside = 1 - (ranks[:n] - rankdata(self.known)) / m
        variance = sum(each.var(ddof=1) / len(each) for each in (above_known, below_outside) if len(each) > 1)
        if variance <= 0 or not 0 < area < 1 or min(n, m) < 2:
            return wilson_interval(area * min(n, m), min(n, m))
        half = normal_quantile() * math.sqrt(variance) / (area * (1 - area))
        center = math.log(area / (1 - area))
        low, high = (1 / (1 + math.exp(-min(max(end, -700.0), 700.0))) for end in (center - half, center + half))
        return low, high

    @property
    def fpr95(self) -> float:
        """The fraction of the outside images that pass where 95% of the known images pass."""
        return float((self.outside <= np.sort(self.known)[self._passing - 1]).mean())

    @property
    def fpr95_interval(self) -> Interval:
        """The 95% interval by the percentile bootstrap over both kinds of images; Wilson's if all or none pass.

        The order statistic of a resample of the known images has a beta distribution, and the number of outside images
        that pass a binomial one, so nothing is resampled one by one.
        """
        n, m, generator = len(self.known), len(self.outside), np.random.default_rng(0)
        if self.fpr95 in (0.0, 1.0):
            return wilson_interval(self.fpr95 * m, m)
        places = np.ceil(n * generator.beta(self._passing, n - self._passing + 1, RESAMPLES)).astype(int)
        limits = np.sort(self.known)[np.clip(places, 1, n) - 1]
        rates = np.searchsorted(np.sort(self.outside), limits, side="right") / m
        low, high = percentile_interval(generator.binomial(m, rates) / m)
        return float(low), float(high)

    @property
    def _passing(self) -> int:
        """The number of known images that pass."""
        return math.ceil(KNOWN_RATE * len(self.known) - 1e-9)

    def to_json(self) -> UnlikeScore:
        return {
            "auroc": self.auroc,
            "auroc_interval": list(self.auroc_interval),
            "fpr95": self.fpr95,
            "fpr95_interval": list(self.fpr95_interval),
        }


def evaluate_unlike(known: ImageLogits, outside: Predictions, name: str) -> UnlikeEvaluation:
    """Returns how well each score tells outside images from the known ones; both are of the same classifier.

    Raises `UsageError` if no outside image could be read.
    """
    readable = [i for i in range(len(outside)) if i not in outside.errors]
    if not readable:
        raise UsageError(f"none of the {len(outside)} images of {name} can be read", outside.errors.get(0))
    facts, logits_MY = outside.unlike_facts, outside.logits[readable].double().numpy()
    detections = {
        baseline: Detection(score(known.logits), score(logits_MY))
        for baseline, score in BASELINES[outside.task].items()
    }
    flagged: dict[str, float] = {}
    if facts is not None and known.distances is not None and outside.distances is not None:
        distances = Detection(known.distances, outside.distances[readable].double().numpy())
        detections = {MAHALANOBIS: distances, **detections}
        for part, values in (("known", distances.known), ("outside", distances.outside)):
            flagged[part] = float((facts.find_quantiles(values) >= facts.threshold).mean())
    document: UnlikeEvaluation = {
        "outside": name,
        "outside_images": len(readable),
        "known_images": len(known.labels),
        "default": next(iter(detections)),
        "scores": {score: detection.to_json() for score, detection in detections.items()},
        "fit": describe_unlike(facts),
        "unreadable_files": [
            {"path": str(outside.paths[i]), "error": outside.errors[i]} for i in sorted(outside.errors)
        ],
    }
    return {**document, "flagged": flagged} if flagged else document
