"""Weights + image -> map: the methods, how far each can be believed, and their pictures."""

from vitrail.explanation.explanation import Explanation, explain, explain_batch
from vitrail.explanation.methods import DEFAULT, METHODS
from vitrail.explanation.recording import Record, recording

__all__ = ["DEFAULT", "METHODS", "Explanation", "Record", "explain", "explain_batch", "recording"]
