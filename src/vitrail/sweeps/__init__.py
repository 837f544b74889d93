"""Many runs of a recipe with some of its fields varied: which values are best on validation."""

from vitrail.sweeps.sweep import Sweep, sweep

__all__ = ["Sweep", "sweep"]
