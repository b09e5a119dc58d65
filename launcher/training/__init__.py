"""The training of a recipe: preflight checks, the loop, checkpoints and the results of a run."""
