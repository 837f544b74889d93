"""Weights -> numbers: the outcome on every image, metrics with intervals, the confusion matrix."""

from vitrail.evaluate.evaluation import Evaluation, evaluate
from vitrail.evaluate.outcome import Outcome, classify

__all__ = ["Evaluation", "Outcome", "classify", "evaluate"]
