"""Conversion of the text of an override to the type that its field declares."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import types
import typing
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter

from launcher.text import plural


class NotScalarError(Exception):
    """Error for a field whose type no text can stand for."""


def field_type(owner: type, name: str, value: object) -> Any:
    """Return the declared type of a dataclass's field.

    If the declaration says nothing (`Any`, or a name that exists only for type checkers), this is the type of the
    field's present `value`.
    """
    # pydantic has already resolved the types of its own dataclasses, including classes inside functions.
    if name in getattr(owner, "__pydantic_fields__", {}):
        declared = cast(Any, owner).__pydantic_fields__[name].annotation
    else:
        declared = _plain_field_type(owner, name)
    if declared in (Any, object, None):
        return type(value)
    return declared


def _plain_field_type(owner: type, name: str) -> Any:
    declared = {field.name: field.type for field in dataclasses.fields(cast(Any, owner))}[name]
    holder = types.SimpleNamespace(__annotations__={name: declared})
    for base in owner.__mro__:  # An inherited field's type is written with the names of its base's module.
        module = sys.modules.get(base.__module__)
        with contextlib.suppress(NameError, AttributeError):
            return typing.get_type_hints(holder, globalns=dict(vars(module)) if module else {})[name]
    return None


def read_scalar(text: str, declared: Any) -> object:
    """Read `text` as a value of the type `declared`.

    The type may be None, bool, int, float, str, Path, a Literal, or a tuple of these (separated by commas; no text is
    the empty tuple). In a union the narrowest type that fits wins: "none" is None where None is allowed, and "3" is an
    int rather than a str.

    Raises ValueError("should be ...") if the text does not fit, and NotScalarError if `declared` holds no scalar.
    """
    members = sorted(filter(_is_scalar, _members(declared)), key=_narrowness)
    if not members or all(member is type(None) for member in members):
        raise NotScalarError
    for member in members:
        try:
            return _read_as(text, member)
        except ValueError:
            continue
    choices = [_shown(choice) for member in members for choice in _choices(member)]
    # Short words are similar to nearly everything, so half of the letters must agree.
    close = get_close_matches(text, choices, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"should be {_listed([expected(member) for member in members])}{hint}")


def _members(declared: Any) -> list[Any]:
    """Return the alternatives of a type, with unions and `Annotated` taken apart."""
    if hasattr(declared, "__metadata__"):
        return _members(get_args(declared)[0])
    if get_origin(declared) in (Union, types.UnionType):
        return [member for argument in get_args(declared) for member in _members(argument)]
    if hasattr(declared, "__value__"):  # `type Name = ...`, from Python 3.12 on.
        return _members(declared.__value__)
    return [declared]


def _is_scalar(member: Any) -> bool:
    if get_origin(member) is tuple:
        return all(any(map(_is_plain, _members(item))) for item in get_args(member) if item is not ...)
    return _is_plain(member)


def _is_plain(member: Any) -> bool:
    return get_origin(member) is Literal or member in (type(None), bool, int, float, str, Path)


def _narrowness(member: Any) -> int:
    # int before bool, so that "1" is a number where both are allowed.
    order = {type(None): 0, int: 2, float: 3, bool: 4, tuple: 6, Path: 7, str: 8}
    return order.get(get_origin(member) or member, 1)


def _read_as(text: str, member: Any) -> object:
    """Read `text` as the one type `member`; raise ValueError if it does not fit."""
    if choices := _choices(member):
        for choice in choices:
            if text == _shown(choice) or (choice is None and text.lower() in ("none", "null")):
                return choice
        raise ValueError
    if get_origin(member) is tuple:
        return _read_tuple(text, get_args(member))
    if member is int:  # pydantic would also take "8.0", so that a float of `int | float` would be lost
        return int(text)
    if member is bool and text.lower() in ("t", "f", "y", "n"):  # likewise: a letter of `bool | str` is a str
        raise ValueError
    return TypeAdapter(member, config=ConfigDict(allow_inf_nan=False)).validate_strings(text)


def _read_tuple(text: str, items: tuple[Any, ...]) -> tuple[object, ...]:
    pieces = [piece.strip() for piece in text.split(",")] if text.strip() else []
    if len(items) == 2 and items[1] is ...:
        items = (items[0],) * len(pieces)
    if len(pieces) != len(items):
        raise ValueError
    return tuple(read_scalar(piece, item) for piece, item in zip(pieces, items, strict=True))


def _choices(member: Any) -> tuple[Any, ...]:
    if get_origin(member) is Literal:
        return get_args(member)
    return (None,) if member is type(None) else ()


def _shown(choice: object) -> str:
    return "none" if choice is None else str(choice).lower() if isinstance(choice, bool) else str(choice)


def expected(member: Any) -> str:
    """Describe in words the text that a scalar type takes."""
    if get_origin(member) is Literal:
        return _listed([repr(_shown(choice)) for choice in get_args(member)])
    if get_origin(member) is tuple:
        items = get_args(member)
        if len(items) == 2 and items[1] is ...:
            each = " or ".join(map(expected, _members(items[0])))
            return f"a list separated by commas, each {each}"
        return f"{plural(len(items), 'value')} separated by commas"
    words = {type(None): "none", bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}
    return words.get(member, "text")


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
