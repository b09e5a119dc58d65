"""A decision: a line of the recipe, and why."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Decision:
    """One line of the recipe."""

    field: str
    value: Any
    """A `Call`, several of them (a plan), or a plain value."""
    why: str
    brief: str = ""
    """For the screen; empty: the value as it is written."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A part as it is written: `backbones.Torchvision(name="resnet50")`."""

    name: str
    fields: dict[str, Any]
