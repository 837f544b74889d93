"""Sweeps: many runs of a recipe with some fields varied, compared on validation."""

from vitrail.sweeps.sweep import Sweep, sweep

__all__ = ["Sweep", "sweep"]
