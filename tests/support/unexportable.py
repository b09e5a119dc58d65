"""Backbones that torch.export cannot capture for batches of any size."""

from __future__ import annotations

import dataclasses
from typing import Any

import tiny
from tiny import recipe as recipe  # what makes this a recipe file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choosy(tiny.TinyBackbone):
    """What it computes depends on the pictures."""

    def build(self) -> Any:
        network = super().build()
        plain = network.forward
        network.forward = lambda images: plain(images) if images.mean() > 0 else plain(-images)
        return network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(tiny.TinyBackbone):
    """It takes batches of even size alone."""

    def build(self) -> Any:
        network = super().build()
        plain = network.forward
        network.forward = lambda images: plain(images.unflatten(0, (-1, 2)).flatten(0, 1))
        return network
