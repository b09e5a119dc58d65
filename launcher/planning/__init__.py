"""The plan of a recipe: what it will do and cost, without training."""
