"""Dotted names of a recipe's fields (`optim.lr`, `freeze_plan.0.epochs`), and values in few words."""

from __future__ import annotations

import dataclasses


def join(at: str, name: object) -> str:
    """The dotted name of the field or item `name` of what stands at `at` ("" is the recipe itself)."""
    return f"{at}.{name}" if at else str(name)


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_dataclass_value(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
