"""Backbones of a recipe: pretrained networks without their last classifying layer."""

from launcher.backbones.plain_names import plain_state_dict
from launcher.backbones.timm import Timm
from launcher.backbones.torchvision import Torchvision

__all__ = ["Timm", "Torchvision", "plain_state_dict"]
