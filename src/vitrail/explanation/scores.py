"""The scores of explanation methods: means with bootstrap intervals, and the best method of each measure."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vitrail.explanation.measures import MEASURES
from vitrail.explanation.methods import METHODS
from vitrail.intervals import bootstrap_means, percentile_interval


@dataclass(frozen=True)
class Score:
    """A measure of a method: the mean over images, its 95% bootstrap interval, and the value of each image."""

    mean: float
    interval: tuple[float, float]
    values: np.ndarray = field(repr=False)
    is_best: bool = False  # the best method, or one that is not significantly worse

    def to_json(self) -> dict[str, Any]:
        """Mean, interval and number of images."""
        return {"mean": self.mean, "interval": list(self.interval), "images": len(self.values), "best": self.is_best}


@dataclass(frozen=True)
class MethodScores:
    """The scores of one method, its mean curves (S,), and the time for one map."""

    scores: dict[str, Score | None]  # by measure; None where it cannot be measured on these images
    curves: dict[str, list[float]]
    milliseconds: float
    forward_passes: float  # the same time in forward passes of this model
    is_control: bool = False

    def to_json(self) -> dict[str, Any]:
        """Returns all numbers except the values of single images."""
        return {
            **{name: None if score is None else score.to_json() for name, score in self.scores.items()},
            "curves": self.curves,
            "milliseconds": self.milliseconds,
            "forward_passes": self.forward_passes,
            "control": self.is_control,
        }


@dataclass(frozen=True)
class Faithfulness:
    """The scores of explanation methods and of control maps on the same images."""

    methods: dict[str, MethodScores]
    images: int
    remaining: list[float]  # fraction of the patches that remain at each point of the curves
    description: str = ""  # of the images
    unreadable: int = 0  # images that could not be read and were skipped

    def to_json(self) -> dict[str, Any]:
        """`methods` by name with every score; `measures` describes the scores."""
        return {
            "images": self.images,
            "unreadable": self.unreadable,
            "data": self.description,
            "measures": {
                name: {"label": measure.label, "description": measure.description, "better": measure.better}
                for name, measure in MEASURES.items()
            },
            "remaining": self.remaining,
            "methods": {
                name: {
                    **scores.to_json(),
                    "class_blind": scores.is_control or (name in METHODS and METHODS[name].class_blind),
                    "signed": name in METHODS and METHODS[name].signed,
                    "cost": METHODS[name].cost if name in METHODS else None,
                }
                for name, scores in self.methods.items()
            },
        }


def make_score(values: np.ndarray | None, seed: int) -> Score | None:
    """Mean and bootstrap interval of one value per image; None where there are none or one is not finite."""
    if values is None or not np.isfinite(values).all():
        return None
    low, high = percentile_interval(bootstrap_means(values, np.random.default_rng(seed)))
    return Score(float(values.mean()), (float(low), float(high)), values)


def mark_best(methods: dict[str, MethodScores], seed: int) -> dict[str, MethodScores]:
    """Marks the best method of each measure, and every method that is not significantly worse.

    The test is a bootstrap of the paired differences. Controls are not marked.
    """
    marked = {name: dict(method.scores) for name, method in methods.items()}
    for measure, definition in MEASURES.items():
        sign = 1 if definition.better == "higher" else -1
        scores = {
            name: score
            for name, method in methods.items()
            if not method.is_control and (score := method.scores[measure]) is not None
        }
        if not scores:
            continue
        best = max(scores.values(), key=lambda score: sign * score.mean)
        for name, score in scores.items():
            differences = sign * (best.values - score.values)
            low, _ = percentile_interval(bootstrap_means(differences, np.random.default_rng(seed)))
            marked[name][measure] = replace(score, is_best=bool(score is best or low <= 0))
    return {name: replace(method, scores=marked[name]) for name, method in methods.items()}
