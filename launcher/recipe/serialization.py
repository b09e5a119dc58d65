"""A recipe as JSON, and back to an equal value.

A part is `{"type": "launcher.recipe.optim.AdamW", "lr": 0.001, ...}`, a tuple a list. Reading constructs dataclasses
only, so a file cannot make anything else happen than importing the modules that it names.
"""

from __future__ import annotations

import dataclasses
import math
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pydantic
from pydantic.fields import FieldInfo

from launcher.errors import Problems, UserError, did_you_mean
from launcher.recipe.dotted import is_dataclass_value, join, short
from launcher.recipe.part import problems_in

_PATH = "pathlib.Path"


def to_json(recipe: object) -> dict[str, Any]:
    """The recipe, or any dataclass, as what `json` can write; `from_json` turns it into an equal value.

    Values are None, bool, int, finite float, str, Path, tuples, dicts with str keys, and dataclasses that can be
    imported by name. Raises UserError with one line for each field that is none of these.
    """
    if not is_dataclass_value(recipe):
        raise UserError(f"{short(recipe)}: a {type(recipe).__name__}, not a recipe or another dataclass")
    problems = Problems()
    data = _encode(recipe, "", problems)
    problems.raise_if_any()
    return cast(dict[str, Any], data)


def _encode(value: Any, at: str, problems: Problems) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if not math.isfinite(value):
            problems.found.append(f"{at}={value}: must be finite")
        return value
    if isinstance(value, Path):
        return {"type": _PATH, "path": str(value)}
    if type(value) is tuple:
        return [_encode(item, join(at, index), problems) for index, item in enumerate(value)]
    if type(value) is dict and "type" not in value and all(type(key) is str for key in value):
        return {key: _encode(item, join(at, key), problems) for key, item in value.items()}
    if not is_dataclass_value(value):
        problems.found.append(f"{at}={short(value)}: {_why_not(value)}")
        return None
    with problems.collected():
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        if "type" in fields:
            raise UserError(f"{join(at, 'type')}: a field of a part cannot be called 'type'; give it another name")
        data = {name: _encode(getattr(value, name), join(at, name), problems) for name in fields}
        return {"type": _dotted_name(type(value), at), **data}
    return None


def _why_not(value: object) -> str:
    if isinstance(value, FieldInfo):
        return (
            "the default was lost: a class that inherits from a part must be made a part, too; write @part (from "
            "launcher.recipe.part) above it in place of @dataclass"
        )
    if isinstance(value, list):
        return "a list can change; write a tuple: (a, b)"
    if isinstance(value, dict):
        return "the keys of a dict must be text, and none of them 'type'"
    what = "a function" if callable(value) else f"a {type(value).__name__}"
    return f"{what} cannot be saved as JSON; use numbers, text, tuples, or a frozen dataclass of these (@part)"


def _dotted_name(cls: type, at: str) -> str:
    name = f"{cls.__module__}.{cls.__qualname__}"
    where = at or cls.__name__
    if "<locals>" in name:
        raise UserError(f"{where}: {cls.__name__} is made inside a function; move it to the top of its file")
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        found = None
    if cls.__module__ == "__main__" or found is not cls:
        raise UserError(f"{where}: {name} cannot be imported by that name; move the class into a file of its own")
    return name


def from_json(data: Mapping[str, Any]) -> Any:
    """The value that `to_json` wrote.

    Raises UserError with one line for each type that is not a dataclass or cannot be imported, each unknown or missing
    field, and each value that a part refuses.
    """
    if not isinstance(data, Mapping) or "type" not in data:
        raise UserError(f"{short(data)}: not a saved recipe; it has no 'type'")
    problems = Problems()
    value = _decode(data, "", problems)
    problems.raise_if_any()
    return value


def _decode(data: Any, at: str, problems: Problems) -> Any:
    if isinstance(data, (list, tuple)):
        return tuple(_decode(item, join(at, index), problems) for index, item in enumerate(data))
    if not isinstance(data, Mapping):
        return data
    fields = {key: _decode(item, join(at, key), problems) for key, item in data.items() if key != "type"}
    if "type" not in data:
        return fields
    if data["type"] == _PATH:
        return Path(str(data.get("path", "")))
    with problems.collected():
        return _construct(_dataclass_named(data["type"], at), fields, at)
    return None


def _dataclass_named(name: object, at: str) -> type:
    where = f"{join(at, 'type')}={name!r}"
    try:
        found = pkgutil.resolve_name(name) if isinstance(name, str) and ":" not in name else None
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: cannot be imported ({error}); is its file still there, under that name?") from None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UserError(f"{where}: not a dataclass; nothing else is made from a file")
    return found


def _construct(cls: type, fields: dict[str, Any], at: str) -> Any:
    problems = Problems()
    known = [field for field in dataclasses.fields(cast(Any, cls)) if field.init]
    names = [field.name for field in known]
    for name in fields:
        if name not in names:
            problems.found.append(f"{join(at, name)}: {cls.__name__} has no field {name!r}{did_you_mean(name, names)}")
    for field in known:
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in fields:
            problems.found.append(f"{join(at, field.name)}: missing; {cls.__name__} needs it")
    problems.raise_if_any()
    try:
        return cls(**fields)
    except pydantic.ValidationError as error:
        raise UserError(*problems_in(error, cls, at)) from None
    except (ValueError, TypeError) as error:  # What a plain dataclass's own checks raise.
        raise UserError(f"{at or cls.__name__}: {error}") from None


def differences(there: object, now: object) -> list[str]:
    """One line for each dotted field in which two recipes, or their JSON, differ: "optim.lr: 0.001 there, 0.0003 now".

    `there` may be the JSON of a recipe whose file is gone; nothing is imported to compare.
    """
    old, new = (to_json(value) if is_dataclass_value(value) else value for value in (there, now))
    return _differences(old, new, "")


_ABSENT = object()


def _differences(there: Any, now: Any, at: str) -> list[str]:
    if isinstance(there, Mapping) and isinstance(now, Mapping) and there.get("type") == now.get("type"):
        names = dict.fromkeys([*there, *now])
        return [
            line
            for name in names
            for line in _differences(there.get(name, _ABSENT), now.get(name, _ABSENT), join(at, name))
        ]
    if isinstance(there, list) and isinstance(now, list) and (len(there) == len(now) or _has_parts(there + now)):
        lines = [] if len(there) == len(now) else [f"{at}: {len(there)} items there, {len(now)} now"]
        for index, (old, new) in enumerate(zip(there, now, strict=False)):
            lines += _differences(old, new, join(at, index))
        return lines
    # True == 1, but they are not the same setting; 1 and 1.0 are.
    if there == now and isinstance(there, bool) == isinstance(now, bool):
        return []
    return [f"{at or 'recipe'}: {_in_python(there)} there, {_in_python(now)} now"]


def _has_parts(items: list[Any]) -> bool:
    return any(isinstance(item, Mapping) for item in items)


def _in_python(data: Any) -> str:
    """JSON as a recipe's author would write it."""
    if data is _ABSENT:
        return "nothing"
    if isinstance(data, Mapping):
        fields = ", ".join(f"{name}={_in_python(item)}" for name, item in data.items() if name != "type")
        return f"{str(data.get('type', 'dict')).rpartition('.')[2]}({fields})"
    if isinstance(data, list):
        return f"({', '.join(map(_in_python, data))}{',' if len(data) == 1 else ''})"
    return repr(data)
