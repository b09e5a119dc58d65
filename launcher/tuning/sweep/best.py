"""Recipe file of the best trial: the sweep's recipe with the trial's overrides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from launcher.files import write_atomic
from launcher.recipe.loading import LoadedRecipe
from launcher.text import one_line

FILE = "best.py"


def write_best(folder: Path, loaded: LoadedRecipe, overrides: Sequence[str], summary: str, command: str) -> Path:
    """Write STUDY/best.py, and return its path.

    The file finds the sweep's recipe by its place relative to itself, and so follows later changes of that recipe. The
    trial's recipe.json holds what the trial itself ran.
    """
    path = folder / FILE
    beside = os.path.relpath(loaded.path, folder.absolute())
    name = "" if loaded.variable == "recipe" else f":{loaded.variable}"
    lines = [
        '"""' + _in_docstring(summary),
        "",
        f"    {_in_docstring(command)}",
        '"""',
        "",
        "from pathlib import Path",
        "",
        "from launcher.recipe.loading import load_recipe",
        "from launcher.recipe.overrides import apply_overrides",
        "",
        f"SWEPT = str(Path(__file__).parent / {_quoted(beside)}){name and f' + {_quoted(name)}'}",
        "",
        "recipe = apply_overrides(",
        "    load_recipe(SWEPT).recipe,",
        "    [",
        *(f"        {_quoted(override)}," for override in overrides),
        "    ],",
        ")",
        "",
    ]
    write_atomic(path, "\n".join(lines))
    return path


def _in_docstring(text: str) -> str:
    return one_line(text).replace("\\", "\\\\").replace('"', '\\"')


def _quoted(text: str) -> str:
    """Return a string literal, with double quotes unless the text holds one."""
    plain = repr(text)
    return f'"{plain[1:-1]}"' if plain.startswith("'") and '"' not in plain else plain
