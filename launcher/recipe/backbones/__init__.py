"""Pretrained networks without their last classifying layer."""

from launcher.recipe.backbones.plain import plain_state_dict
from launcher.recipe.backbones.timm import Timm
from launcher.recipe.backbones.torchvision import Torchvision

__all__ = ["Timm", "Torchvision", "plain_state_dict"]
