"""The report of a classifier on labeled images: report.json, and report.html that is rendered from it."""

from vitrail.report.subject import SampleSizes, Subject, report_command
from vitrail.report.write import write_report

__all__ = ["SampleSizes", "Subject", "report_command", "write_report"]
