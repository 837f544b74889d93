"""Sweeps: many runs of a recipe with some fields varied, compared on validation."""
