"""The scores of explanation methods: means with intervals, and the best method of each measure."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vitrail.explanation.measures import MEASURES, Measure
from vitrail.explanation.methods import METHODS
from vitrail.intervals import LEVEL, Interval

ROUNDING = 1e-6  # of maps in float32: class-blind maps differ from chance by this much at most


@dataclass(frozen=True)
class Score:
    """A measure of a method: the mean of its values, its 95% interval (None for a single image), and the values.

    Only values along the first axis are independent, or along the last two if there are three (`Measure.interval`).
    """

    mean: float
    interval: Interval | None
    values: np.ndarray = field(repr=False)
    is_best: bool = False  # the best method, or one that is not significantly worse

    def to_json(self) -> dict[str, Any]:
        """Mean, interval, and number of independent images or composites."""
        return {
            "mean": self.mean,
            "interval": None if self.interval is None else list(self.interval),
            "images": self.values.shape[-1] if self.values.ndim == 3 else len(self.values),
            "best": self.is_best,
        }


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


def make_score(values: np.ndarray | None, measure: Measure) -> Score | None:
    """Mean and interval of the values of a method; None where there are none or one is not finite."""
    if values is None or not np.isfinite(values).all():
        return None
    return Score(float(values.mean()), measure.interval(values, LEVEL), values)


def mark_best(methods: dict[str, MethodScores]) -> dict[str, MethodScores]:
    """Marks the best method of each measure, and every method that is not significantly worse.

    The test is the interval of the paired differences from the best method, corrected for the number of methods.
    Controls are not marked, nor are methods that are not above chance in a measure that has one.
    """
    marked = {name: dict(method.scores) for name, method in methods.items()}
    for name, measure in MEASURES.items():
        sign = 1 if measure.better == "higher" else -1
        scores = {
            method: score
            for method, row in methods.items()
            if not row.is_control and (score := row.scores[name]) is not None and is_above_chance(score, measure)
        }
        if not scores:
            continue
        best = max(scores.values(), key=lambda score: sign * score.mean)
        level = 1 - 2 * (1 - LEVEL) / max(len(scores) - 1, 1)  # one-sided, for each of the other methods
        for method, score in scores.items():
            differences = measure.interval(sign * (best.values - score.values), level)
            is_best = score is best or differences is None or differences[0] <= ROUNDING
            marked[method][name] = replace(score, is_best=is_best)
    return {name: replace(method, scores=marked[name]) for name, method in methods.items()}


def is_above_chance(score: Score, measure: Measure) -> bool:
    """Whether the whole interval is above chance; true for a measure without a chance level."""
    if measure.chance is None:
        return True
    return score.interval is not None and score.interval[0] > measure.chance + ROUNDING
