"""Batches -> weights: recipes, optimisers, schedules, the loop, checkpoints."""

from vitrail.training.recipes import DEFAULT_RECIPE, DEFAULT_TRANSFER_RECIPE, RECIPES, Recipe, find_recipe

__all__ = ["DEFAULT_RECIPE", "DEFAULT_TRANSFER_RECIPE", "RECIPES", "Recipe", "find_recipe"]
