"""Parts of a recipe: frozen, keyword-only, typed values that pydantic validates."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, TypeVar, cast

import pydantic
import pydantic.dataclasses
from typing_extensions import dataclass_transform

from launcher.errors import did_you_mean

T = TypeVar("T")

# A field's docstring (the string below it) is its description. An unknown or wrongly typed field is an error; it never
# falls back to a default.
_CONFIG = pydantic.ConfigDict(
    extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True, allow_inf_nan=False
)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field, pydantic.Field))
def part(cls: type[T]) -> type[T]:
    """Make `cls` a part: a frozen, keyword-only dataclass whose fields are checked and coerced to their types.

    Its construction raises pydantic.ValidationError, which `launcher.recipe.part.problems_in` turns into lines.
    """
    make = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_CONFIG)
    return cast(type[T], make(cls))


def problems_in(error: pydantic.ValidationError, owner: type | None = None, at: str = "") -> list[str]:
    """Return one line for each problem of a part: the field, the value that was given, and what is wrong with it.

    `owner` is the part's class if it is known (for "did you mean"), `at` the dotted path of the part in the recipe.
    """
    lines = []
    problems = error.errors(include_url=False)
    for problem in problems:
        # pydantic also reports a tuple as too short when it rejects its items.
        below = [inner for inner in problems if inner["loc"][:1] == problem["loc"] and len(inner["loc"]) > 1]
        if problem["type"] == "too_short" and below:
            continue
        # A union's location ends in the names of its members ("int", "literal['auto']"); the field's own name and the
        # indices in tuples are enough.
        places = itertools.takewhile(lambda piece: isinstance(piece, int), problem["loc"][1:])
        where = ".".join(map(str, [*problem["loc"][:1], *places]))
        name = ".".join(piece for piece in (at or error.title, where) if piece)
        if problem["type"] == "unexpected_keyword_argument":
            fields = [field.name for field in dataclasses.fields(cast(Any, owner))] if owner else []
            lines.append(f"{name}: {error.title} has no field {where!r}{did_you_mean(where, fields)}")
        elif problem["type"] == "missing":
            lines.append(f"{name}: missing; {error.title} needs it")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
            # A problem of the part as a whole has no value of its own: pydantic gives all the arguments.
            shown = f"={_short(problem['input'])}" if problem["loc"] else ""
            lines.append(f"{name}{shown}: {message}")
    return list(dict.fromkeys(lines))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
