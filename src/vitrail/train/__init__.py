"""Batches -> weights: recipes, optimisers, schedules, the loop, checkpoints."""

from vitrail.train.recipes import DEFAULT, RECIPES, Recipe, find_recipe

__all__ = ["DEFAULT", "RECIPES", "Recipe", "find_recipe"]
