"""The recipe file: Python for its author to go on with, with a comment on each decision."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.errors import UserError
from launcher.files import draft_folder, expanded, remove_drafts, write_atomic
from launcher.init.decision import Call, Decision
from launcher.recipe.location import place_of
from launcher.text import one_line

WIDTH = 88
"""The width of lines, which is the default of formatters. Lines that fit into it, or are broken with a trailing comma,
stay as they are at any larger width."""


def recipe_text(
    decisions: Sequence[Decision], summary: str, file: str, words: Sequence[str], start: Sequence[str]
) -> str:
    """Return the whole recipe file.

    `file` is its name, `words` are the arguments of `init`, `summary` is a sentence on the data, and `start` are the
    words before `file` that train it.
    """
    parts = {"Recipe"} | {
        call.name.partition(".")[0]
        for decision in decisions
        for call in (decision.value if isinstance(decision.value, tuple) else [decision.value])
        if isinstance(call, Call)
    }
    about = textwrap.wrap(_in_docstring(summary), WIDTH, break_long_words=False, break_on_hyphens=False)
    lines = [
        '"""' + _in_docstring(f"Written by: {shlex.join(['python', '-m', 'launcher', 'init', *words])}"),
        "",
        *about,
        "",
        "Begin with a look at what it will do; every line may be changed.",
        "",
        "    " + _in_docstring(shlex.join(["python", "-m", "launcher", "plan", file])),
        "    " + _in_docstring(shlex.join([*start, file])),
        '"""',
        "",
        *_import(sorted(parts, key=lambda name: (name != "Recipe", name))),
        "",
        "recipe = Recipe(",
    ]
    for decision in decisions:
        why = textwrap.wrap(one_line(decision.why), WIDTH - 6, break_long_words=False, break_on_hyphens=False)
        lines += [f"    # {line}" for line in why]
        lines += [f"    {line}" for line in _field(decision.field, decision.value, WIDTH - 4)]
    return "\n".join([*lines, ")", ""])


def in_python(value: Any) -> str:
    """Return a call or a plain value in Python, on one line."""
    if isinstance(value, Call):
        return f"{value.name}({', '.join(f'{name}={in_python(item)}' for name, item in value.fields.items())})"
    if isinstance(value, tuple):
        return f"({', '.join(map(in_python, value))})"
    if isinstance(value, str):
        return _quoted(value)
    return "1e-3" if value == 1e-3 else repr(value)


def _field(name: str, value: Any, width: int) -> list[str]:
    """Return the lines of `name=value,`: one line if it fits, otherwise a line for each item."""
    if isinstance(value, tuple) and len(value) == 1:
        return _field(name, value[0], width)
    if isinstance(value, tuple) and isinstance(value[0], Call):
        phases = [line for phase in value for line in _broken("*" + phase.name, phase.fields, width - 4)]
        return [f"{name}=(", *(f"    {line}" for line in phases), "),"]
    flat = f"{name}={in_python(value)},"
    if len(flat) <= width or not isinstance(value, (Call, tuple)):
        return [flat]
    if isinstance(value, Call):
        inner = [line for field, item in value.fields.items() for line in _field(field, item, width - 4)]
        return [f"{name}={value.name}(", *(f"    {line}" for line in inner), "),"]
    return [f"{name}=(", *(f"    {in_python(item)}," for item in value), "),"]


def _broken(name: str, fields: dict[str, Any], width: int) -> list[str]:
    flat = in_python(Call(name, fields)) + ","
    if len(flat) <= width:
        return [flat]
    return [f"{name}(", *(f"    {line}" for f, v in fields.items() for line in _field(f, v, width - 4)), "),"]


def _import(names: Sequence[str]) -> list[str]:
    flat = f"from launcher import {', '.join(names)}"
    return [flat] if len(flat) <= WIDTH else ["from launcher import (", *(f"    {name}," for name in names), ")"]


def _quoted(text: str) -> str:
    """Return a string literal as formatters write it: in double quotes, unless single ones save escapes."""
    escaped = repr(text + "\"'")[1:-4].replace("\\'", "'")  # with both quotes in it, repr takes single ones
    mark = '"' if text.count('"') <= text.count("'") else "'"
    return mark + escaped.replace(mark, "\\" + mark) + mark


def _in_docstring(text: str) -> str:
    return one_line(text).replace("\\", "\\\\").replace('"', '\\"')


def check_target(to: Path, overwrite: bool) -> Path:
    """Return the absolute path of the file to write. Raises UserError for a place or name that cannot be a recipe's."""
    path = Path(os.path.abspath(expanded(to)))  # noqa: PTH100
    if path.suffix != ".py":
        raise UserError(f"--to {to}: a recipe is a Python file; end its name in .py")
    if path.is_dir():
        raise UserError(f"--to {to}: a folder; give the name of a file in it: {to / 'recipe.py'}")
    if not path.parent.is_dir():
        raise UserError(f"--to {to}: no folder {path.parent}")
    if path.exists() and not overwrite:
        raise UserError(f"--to {to}: is there already; give another name with --to, or --overwrite")
    place_of(path)
    return path


def write(text: str, path: Path, overwrite: bool) -> None:
    """Write the file as a whole or not at all. Raises UserError if it cannot be written, or has appeared meanwhile."""
    try:
        if overwrite:
            remove_drafts(path.parent, path.name)
            write_atomic(path, text)
            return
        with draft_folder(path) as folder:
            (folder / path.name).write_text(text, encoding="utf-8")
            os.link(folder / path.name, path)  # as a whole or not at all, and never over another file
    except FileExistsError:
        raise UserError(f"--to {path}: is there already; give another name with --to, or --overwrite") from None
    except OSError as error:
        raise UserError(f"--to {path}: cannot be written: {error.strerror or error}") from error
