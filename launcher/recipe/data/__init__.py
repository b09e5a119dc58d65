"""Where images and targets come from."""

from launcher.recipe.data.folder import ImageFolder
from launcher.recipe.data.hub import HuggingFace
from launcher.recipe.data.table import CsvImages
from launcher.recipe.data.torchvision_sets import Torchvision

__all__ = ["CsvImages", "HuggingFace", "ImageFolder", "Torchvision"]
