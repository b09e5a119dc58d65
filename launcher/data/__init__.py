"""Data parts of a recipe: the sources of images and targets."""

from launcher.data.csv import CsvImages
from launcher.data.folder import ImageFolder
from launcher.data.hub import HuggingFace
from launcher.data.torchvision_datasets import Torchvision

__all__ = ["CsvImages", "HuggingFace", "ImageFolder", "Torchvision"]
