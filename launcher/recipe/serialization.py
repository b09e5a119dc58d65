"""Conversion of a recipe to JSON, and back to an equal value.

A part becomes `{"type": "launcher.optim.AdamW", "lr": 0.001, ...}`, and a tuple becomes a list. Reading constructs
launcher's own parts, and others only if the caller brings their classes: nothing is imported because a file names it.
"""

from __future__ import annotations

import dataclasses
import math
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pydantic
from pydantic.fields import FieldInfo

from launcher.errors import Problems, UserError, did_you_mean
from launcher.recipe.dotted import is_dataclass_value, join, short
from launcher.recipe.part import problems_in
from launcher.recipe.type_names import Types, current_name, find_type, is_public, name_of
from launcher.text import plural

_PATH = "pathlib.Path"


def to_json(recipe: object) -> dict[str, Any]:
    """Convert a recipe, or any dataclass, to data that `json` can write and `from_json` turns into an equal value.

    Fields may hold None, bool, int, finite float, str, Path, tuples, dicts with str keys, and dataclasses that can be
    imported by name. Raises UserError with one line for each field that holds none of these.
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
    kind = "a function" if callable(value) else f"a {type(value).__name__}"
    return f"{kind} cannot be saved as JSON; use numbers, text, tuples, or a frozen dataclass of these (@part)"


def _dotted_name(cls: type, at: str) -> str:
    if is_public(cls):
        return name_of(cls)
    name = f"{cls.__module__}.{cls.__qualname__}"
    where = at or cls.__name__
    if "<locals>" in name:
        raise UserError(f"{where}: {cls.__name__} is made inside a function; move it to the top of its file")
    try:
        resolved = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        resolved = None
    if cls.__module__ == "__main__" or resolved is not cls:
        raise UserError(f"{where}: {name} cannot be imported by that name; move the class into a file of its own")
    return name


def from_json(data: Mapping[str, Any], own: Types | None = None) -> Any:
    """Return the value of which `to_json` made `data`; `own` holds the classes that are not launcher's, by their names.

    Raises UserError with one line for all types that are neither launcher's nor in `own`, or else with one line for
    each unknown or missing field and for each value that a part rejects.
    """
    if not isinstance(data, Mapping) or "type" not in data:
        raise UserError(f"{short(data)}: not a saved recipe; it has no 'type'")
    own = own or {}
    if foreign := [name for name in dict.fromkeys(_types_named(data)) if not _is_known(name, own)]:
        words = "are not types" if len(foreign) > 1 else "is not a type"
        raise UserError(
            f"{', '.join(foreign[:3])}{' and more' * (len(foreign) > 3)} {words} of launcher; name the recipe file "
            "that defines what is your own, whose code is then run: --recipe FILE, or load(run, recipe=FILE)"
        )
    problems = Problems()
    value = _decode(data, "", own, problems)
    problems.raise_if_any()
    return value


def _types_named(data: Any) -> Iterator[str]:
    """Yield the names of all types in a value's JSON, as messages show them."""
    if isinstance(data, (list, tuple)):
        for item in data:
            yield from _types_named(item)
    elif isinstance(data, Mapping):
        if "type" in data:
            yield data["type"] if _is_plain(data["type"]) else short(data["type"])
        for key, item in data.items():
            if key != "type":
                yield from _types_named(item)


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and len(name) <= 100 and all(piece.isidentifier() for piece in name.split("."))


def _is_known(name: str, own: Types) -> bool:
    return name == _PATH or find_type(name, own) is not None


def _decode(data: Any, at: str, own: Types, problems: Problems) -> Any:
    if isinstance(data, (list, tuple)):
        return tuple(_decode(item, join(at, index), own, problems) for index, item in enumerate(data))
    if not isinstance(data, Mapping):
        return data
    fields = {key: _decode(item, join(at, key), own, problems) for key, item in data.items() if key != "type"}
    if "type" not in data:
        return fields
    if data["type"] == _PATH:
        return Path(str(data.get("path", "")))
    with problems.collected():
        cls = find_type(data["type"], own)
        assert cls is not None, "looked at by from_json"
        return _construct(cls, fields, at)
    return None


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
    except (ValueError, TypeError) as error:  # A plain dataclass's own checks raise these.
        raise UserError(f"{at or cls.__name__}: {error}") from None


def differences(there: object, now: object) -> list[str]:
    """Return one line for each field in which two recipes, or their JSON, differ: "optim.lr: 0.001 there, 0.0003 now".

    `there` may be the JSON of a recipe whose file is gone; the comparison imports nothing. A field that one of
    launcher's parts has gained since then counts with its default.
    """
    old, new = (to_json(value) if is_dataclass_value(value) else value for value in (there, now))
    return _differences(_with_new_fields(old, now), new, "")


def _with_new_fields(there: Any, now: object) -> Any:
    """Return JSON in which the parts of launcher also have the fields that they lack, at their defaults.

    The defaults are those of the parts in `now`, if these have the same type.
    """
    if isinstance(there, list) and isinstance(now, tuple):
        newer = [_with_new_fields(old, new) for old, new in zip(there, now, strict=False)]
        return newer + there[len(newer) :]
    if not (isinstance(there, Mapping) and is_dataclass_value(now)):
        return there
    cls = type(now)
    if current_name(there.get("type")) != name_of(cls):
        return there
    complete = {name: _with_new_fields(old, getattr(now, name, None)) for name, old in there.items()}
    if not is_public(cls):
        return complete
    for field in dataclasses.fields(cast(Any, cls)):
        if field.name in there or not field.init:
            continue
        default = field.default  # pydantic keeps it inside a FieldInfo
        if isinstance(default, FieldInfo):
            default = dataclasses.MISSING if default.is_required() else default.get_default(call_default_factory=True)
        if default is not dataclasses.MISSING:
            complete[field.name] = _encode(default, field.name, Problems())
    return complete


def _type_of(data: Mapping[str, Any]) -> object:
    return current_name(data.get("type"))


_ABSENT = object()


def _differences(there: Any, now: Any, at: str) -> list[str]:
    if isinstance(there, Mapping) and isinstance(now, Mapping) and _type_of(there) == _type_of(now):
        names = dict.fromkeys(name for name in [*there, *now] if name != "type")
        return [
            line
            for name in names
            for line in _differences(there.get(name, _ABSENT), now.get(name, _ABSENT), join(at, name))
        ]
    if isinstance(there, list) and isinstance(now, list) and (len(there) == len(now) or _has_parts(there + now)):
        lines = [] if len(there) == len(now) else [f"{at}: {plural(len(there), 'item', spec='')} there, {len(now)} now"]
        for index, (old, new) in enumerate(zip(there, now, strict=False)):
            lines += _differences(old, new, join(at, index))
        return lines
    # 1 and 1.0 are the same setting, but True and 1 are not, though they are equal.
    if there == now and isinstance(there, bool) == isinstance(now, bool):
        return []
    return [f"{at or 'recipe'}: {_in_python(there)} there, {_in_python(now)} now"]


def _has_parts(items: list[Any]) -> bool:
    return any(isinstance(item, Mapping) for item in items)


def _in_python(data: Any) -> str:
    """Return JSON as the Python code that a recipe's author would write."""
    if data is _ABSENT:
        return "nothing"
    if isinstance(data, Mapping):
        fields = ", ".join(f"{name}={_in_python(item)}" for name, item in data.items() if name != "type")
        return f"{str(data.get('type', 'dict')).rpartition('.')[2]}({fields})"
    if isinstance(data, list):
        return f"({', '.join(map(_in_python, data))}{',' if len(data) == 1 else ''})"
    return repr(data)
