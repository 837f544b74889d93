"""The verbs."""

from vitrail.cli.main import main

__all__ = ["main"]
