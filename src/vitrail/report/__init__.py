"""Everything worth knowing of a classifier on labelled images: report.json, and report.html made from it."""

from vitrail.report.subject import Depth, Subject, command
from vitrail.report.write import write_report

__all__ = ["Depth", "Subject", "command", "write_report"]
