"""Training: recipes, losses, optimizers, schedules, the loop, checkpoints."""

from vitrail.training.recipe import Recipe
from vitrail.training.recipes import DEFAULT_RECIPE, DEFAULT_TRANSFER_RECIPE, RECIPES, find_recipe

__all__ = ["DEFAULT_RECIPE", "DEFAULT_TRANSFER_RECIPE", "RECIPES", "Recipe", "find_recipe"]
