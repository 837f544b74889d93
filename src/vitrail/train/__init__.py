"""Batches -> weights: recipes, optimisers, schedules, the loop, checkpoints."""

from vitrail.train.recipes import RECIPES, Recipe, find_recipe

__all__ = ["RECIPES", "Recipe", "find_recipe"]
