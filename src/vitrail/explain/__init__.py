"""Weights + image -> map: the methods, how far each can be believed, and their pictures."""

from vitrail.explain.explanation import Explanation, explain, explain_batch
from vitrail.explain.methods import DEFAULT, METHODS
from vitrail.explain.recording import Record, recording

__all__ = ["DEFAULT", "METHODS", "Explanation", "Record", "explain", "explain_batch", "recording"]
