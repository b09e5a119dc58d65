"""The best trial as a recipe file: the sweep's recipe, and the trial's overrides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from launcher.files import write_atomic
from launcher.recipe.loading import LoadedRecipe
from launcher.text import one_line

FILE = "best.py"


def write_best(folder: Path, loaded: LoadedRecipe, overrides: Sequence[str], summary: str, command: str) -> Path:
    """Write STUDY/best.py. It finds the sweep's recipe by where that lies beside it, and stays true to later changes
    of it; what the trial itself ran is in its recipe.json."""
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
        *(f"        {_quoted(one)}," for one in overrides),
        "    ],",
        ")",
        "",
    ]
    write_atomic(path, "\n".join(lines))
    return path


def _in_docstring(text: str) -> str:
    return one_line(text).replace("\\", "\\\\").replace('"', '\\"')


def _quoted(text: str) -> str:
    """A string literal, with double quotes where that saves none."""
    plain = repr(text)
    return f'"{plain[1:-1]}"' if plain.startswith("'") and '"' not in plain else plain
