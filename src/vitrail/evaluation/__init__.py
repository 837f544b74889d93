"""Weights -> numbers: the outcome on every image, metrics with intervals, the confusion matrix."""

from vitrail.evaluation.evaluation import Evaluation, evaluate, open_scored_images
from vitrail.evaluation.outcome import Outcome, compute_outcome

__all__ = ["Evaluation", "Outcome", "compute_outcome", "evaluate", "open_scored_images"]
