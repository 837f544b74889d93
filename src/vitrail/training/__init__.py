"""Training: recipes, losses, optimizers, schedules, the loop, checkpoints."""
