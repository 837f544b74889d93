"""Batches -> weights: recipes, optimisers, schedules, the loop, checkpoints."""

from vitrail.training.recipes import DEFAULT, RECIPES, TRANSFER, Recipe, find_recipe

__all__ = ["DEFAULT", "RECIPES", "TRANSFER", "Recipe", "find_recipe"]
