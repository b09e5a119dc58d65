"""A distributed fine-tuning launcher for vision. These are the names that a recipe's author uses."""

from launcher.recipe import backbones, data, heads, optim, phases, tasks, transforms
from launcher.recipe.phases import Phase
from launcher.recipe.protocols import Preprocessing, Split, Splits
from launcher.recipe.recipe import Recipe

__version__ = "0.1.0"

__all__ = [
    "Phase",
    "Preprocessing",
    "Recipe",
    "Split",
    "Splits",
    "backbones",
    "data",
    "heads",
    "optim",
    "phases",
    "tasks",
    "transforms",
]
