"""Overrides of a recipe on the command line: `optim.lr=3e-4 freeze_plan.0.epochs=5 backbone.weights=none`.

They change scalars and tuples of scalars that exist already. The structure of a recipe is changed in Python.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import pydantic

from launcher.errors import Problems, UserError, did_you_mean
from launcher.recipe.dotted import is_dataclass_value, join, short
from launcher.recipe.part import problems_in
from launcher.recipe.scalars import NotScalarError, field_type, read_scalar

R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class _Override:
    key: str
    text: str

    @property
    def path(self) -> tuple[str, ...]:
        return tuple(self.key.split("."))


def apply_overrides(recipe: R, overrides: Sequence[str]) -> R:
    """Return a new recipe with the fields changed that `overrides` name ("dotted.name=value").

    `recipe` itself stays as it is. Values are read as the type that the field declares. Each part that changes is
    validated again as a whole, so two overrides of one part are checked together. This works for any dataclass,
    including a user's own.

    Raises UserError with one line for each override that is malformed or repeated, that names no field or a part
    instead of one of its fields, or whose value the field does not take.
    """
    problems = Problems()
    parsed: dict[str, _Override] = {}
    for override in overrides:
        with problems.collected():
            change = _parse(override)
            if change.key in parsed:
                raise UserError(f"{change.key}: given twice: {change.key}={parsed[change.key].text} and {override}")
            parsed[change.key] = change
    changed = _changed(recipe, "", list(parsed.values()), 0, problems)
    problems.raise_if_any()
    return cast(R, changed)


def _parse(override: str) -> _Override:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals:
        raise UserError(f"{override}: not an override; write name=value, e.g. optim.lr=3e-4")
    if not all(key.split(".")):
        raise UserError(f"{override}: no field name before '='; write name=value, e.g. optim.lr=3e-4")
    return _Override(key, text)


def _changed(value: Any, at: str, overrides: list[_Override], depth: int, problems: Problems) -> Any:
    """Return `value`, which is at `at` in the recipe, with the overrides below it applied.

    The first `depth` pieces of all the overrides' names are those of `at`.
    """
    if not overrides:
        return value
    if isinstance(value, tuple):
        return _changed_tuple(value, at, overrides, depth, problems)
    if not is_dataclass_value(value):
        what = "has no fields" if _is_scalar(value) else "is not a dataclass, so it cannot be overridden"
        problems.found.extend(f"{o.key}: {at} is {short(value)} and {what}" for o in overrides)
        return value
    fields = [field.name for field in dataclasses.fields(value) if field.init]
    new: dict[str, Any] = {}
    names = _by_piece(overrides, depth)
    for name, below in names.items():
        if name not in fields:
            deeper = [join(at, other) for other in _fields_below(value, name)][:MOST_NAMED]
            hint = f"; did you mean {' or '.join(deeper)}?" if deeper else did_you_mean(name, fields)
            unknown = f"{type(value).__name__} has no field {name!r}{hint}"
            problems.found.extend(f"{override.key}: {unknown}" for override in below)
            continue
        now = getattr(value, name)
        with problems.collected():
            new[name] = _changed_item(now, field_type(type(value), name, now), join(at, name), below, depth, problems)
    if len(new) < len(names):  # With some of its overrides missing, the part's own checks would mislead.
        return value
    with problems.collected():
        return _replaced(value, at, new)
    return value


MOST_NAMED = 4
"""Most fields of one name, deeper in a recipe, that an error suggests."""


def _fields_below(value: Any, name: str) -> Iterator[str]:
    """Yield the dotted names of all fields inside `value` that are called `name` and that an override may replace."""
    if isinstance(value, tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    elif is_dataclass_value(value):
        items = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init]
    else:
        return
    for key, item in items:
        if key == name and _is_scalar(item):
            yield key
        yield from (f"{key}.{below}" for below in _fields_below(item, name))


def _changed_tuple(value: Any, at: str, overrides: list[_Override], depth: int, problems: Problems) -> Any:
    items = list(value)
    for index, below in _by_piece(overrides, depth).items():
        if index not in map(str, range(len(items))):
            has = f"{at} has items 0 to {len(items) - 1}" if items else f"{at} is empty"
            problems.found.extend(f"{override.key}: no item {index!r}; {has}" for override in below)
            continue
        now = items[int(index)]
        with problems.collected():
            items[int(index)] = _changed_item(now, type(now), join(at, index), below, depth, problems)
    return tuple(items)


def _changed_item(now: Any, declared: Any, at: str, overrides: list[_Override], depth: int, problems: Problems) -> Any:
    direct = [override for override in overrides if len(override.path) == depth + 1]
    deeper = [override for override in overrides if len(override.path) > depth + 1]
    if not direct:
        return _changed(now, at, deeper, depth + 1, problems)
    new = _read(now, declared, direct[0])
    if deeper:
        raise UserError(*(f"{override.key}: {at} is given as a whole, too" for override in deeper))
    return new


def _read(now: Any, declared: Any, override: _Override) -> Any:
    """Read the new value of a field, whose present value is `now`, from an override of it."""
    if not _is_scalar(now):
        raise UserError(f"{override.key}: {_part_in_words(now, override.key)}")
    try:
        return read_scalar(override.text, declared)
    except NotScalarError:
        raise UserError(f"{override.key}: is {short(now)}, and would be a part; change it in the recipe file") from None
    except ValueError as error:
        raise UserError(f"{override.key}={override.text}: {error}") from None


def _replaced(value: Any, at: str, new: dict[str, Any]) -> Any:
    try:
        return dataclasses.replace(value, **new)
    except pydantic.ValidationError as error:
        lines = problems_in(error, type(value), at)
        raise UserError(*(line if at else line.removeprefix(f"{error.title}.") for line in lines)) from None
    except (ValueError, TypeError) as error:  # A plain dataclass's own checks raise these.
        settings = ", ".join(f"{join(at, name)}={short(item)}" for name, item in new.items())
        raise UserError(f"{settings}: {error}") from None


def _by_piece(overrides: list[_Override], depth: int) -> dict[str, list[_Override]]:
    groups: dict[str, list[_Override]] = {}
    for override in overrides:
        groups.setdefault(override.path[depth], []).append(override)
    return groups


def _part_in_words(value: Any, key: str) -> str:
    if isinstance(value, tuple):
        below = [f"{key}.{index}" for index in range(len(value))]
        what, ways = f"a tuple of {len(value)}", f"reach into one of its items: {', '.join(below)}"
    elif is_dataclass_value(value):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        below = [f"{key}.{name}" for name in fields if _is_scalar(getattr(value, name))]
        what, ways = f"{type(value).__name__}(...), a part", f"override one of its fields: {', '.join(below)}"
    else:
        below, what, ways = [], f"{short(value)}, which no text can replace", ""
    return f"is {what}; change it in the recipe file{', or ' + ways if below else ''}"


def _is_scalar(value: Any) -> bool:
    """Return whether an override may replace a value: a plain value, or a tuple of plain values."""
    return all(map(_is_plain, value)) if isinstance(value, tuple) else _is_plain(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, Path))
