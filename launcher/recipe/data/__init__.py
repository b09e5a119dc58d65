"""Where images and targets come from."""

from launcher.recipe.data.folder import ImageFolder
from launcher.recipe.data.table import CsvImages

__all__ = ["CsvImages", "ImageFolder"]
