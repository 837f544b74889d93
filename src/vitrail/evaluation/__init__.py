"""Weights -> numbers: the outcome on every image, metrics with intervals, the confusion matrix."""

from vitrail.evaluation.evaluation import Evaluation, evaluate, images_to_score
from vitrail.evaluation.outcome import Outcome, classify

__all__ = ["Evaluation", "Outcome", "classify", "evaluate", "images_to_score"]
