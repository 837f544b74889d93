"""Explanation methods, their faithfulness, and figures of their maps."""

from vitrail.explanation.api import explain, explain_batch
from vitrail.explanation.explanation import Explanation
from vitrail.explanation.methods import DEFAULT_METHOD, METHOD_ALIASES, METHODS, find_method
from vitrail.explanation.recording import Record, recording

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "METHOD_ALIASES",
    "Explanation",
    "Record",
    "explain",
    "explain_batch",
    "find_method",
    "recording",
]
