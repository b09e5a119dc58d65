"""Dotted names of a recipe's fields (`optim.lr`, `freeze_plan.0.epochs`), and short forms of values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, cast


def join(at: str, name: object) -> str:
    """Return the dotted name of the field or item `name` of the value at `at` ("" is the recipe itself)."""
    return f"{at}.{name}" if at else str(name)


def flat(value: Any, at: str = "") -> dict[str, Any]:
    """Flatten nested JSON to scalars by dotted name: {"optim": {"lr": 1}} -> {"optim.lr": 1}.

    The types of parts are included.
    """
    if isinstance(value, dict):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return {at: value}
    scalars: dict[str, Any] = {}
    for key, inner in items:
        scalars |= flat(inner, join(at, key))
    return scalars


def short(value: object) -> str:
    """Return the `repr` of a value, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def dataclasses_in(value: object) -> Iterator[Any]:
    """Yield all instances of dataclasses in a value: itself, and those in its fields, its items or its values."""
    if is_dataclass_value(value):
        yield value
        for field in dataclasses.fields(cast(Any, value)):
            yield from dataclasses_in(getattr(value, field.name, None))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from dataclasses_in(item)
    elif isinstance(value, Mapping):
        yield from dataclasses_in(list(value.values()))


def is_dataclass_value(value: object) -> bool:
    """Return whether `value` is an instance of a dataclass, and not the class itself."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
