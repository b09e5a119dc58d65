"""A decision: a line of the recipe, and the reason for it."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Decision:
    """A line of the recipe, and the reason for it."""

    field: str
    value: Any
    """A `Call`, several of them (a freeze plan), or a plain value."""
    why: str
    brief: str = ""
    """The value in words for the screen; if empty, it is shown as it is written."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A part as it is written in a recipe: `backbones.Torchvision(name="resnet50")`."""

    name: str
    fields: dict[str, Any]
