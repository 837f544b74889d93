"""Exports a classifier to other runtimes and libraries; each export is verified before it is written."""
