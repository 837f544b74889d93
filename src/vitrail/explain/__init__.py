"""Weights + image -> map: recorded attention, the methods, their pictures."""

from vitrail.explain.explanation import METHODS, Explanation, explain, explain_batch
from vitrail.explain.recording import Record, recording

__all__ = ["METHODS", "Explanation", "Record", "explain", "explain_batch", "recording"]
