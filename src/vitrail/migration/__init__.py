"""Settings of a training in another library -> a recipe, and a list of what it cannot have."""
