"""A user's own code is compared by what it does: comments and layout do not count, what it imports does."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import optim
from launcher.recipe.own_code import changed_code, own_code

RECIPE = '''"""A recipe."""
import dataclasses
import math
from own_losses import focal
from launcher import optim

SCALE = 1.0
sgd = optim.SGD(lr=0.1)

@dataclasses.dataclass(frozen=True)
class Task:
    """A task of my own."""
    power: float = 2.0

    def build(self):
        # by hand
        return focal(SCALE, self.power)

part = Task()
'''
LOSSES = """
from own_shapes import flat
def focal(x, power): return flat(x) ** power
def unused(x): return x
"""
SHAPES = "def flat(x): return x\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "own_recipe.py").write_text(RECIPE)
    (tmp_path / "own_losses.py").write_text(LOSSES)
    (tmp_path / "own_shapes.py").write_text(SHAPES)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def part() -> Any:
    forget()
    importlib.invalidate_caches()
    return importlib.import_module("own_recipe").part


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("own_recipe.py", "# by hand", "# by my hand", []),
        ("own_recipe.py", '"""A task of my own."""', '"""My task."""', []),
        ("own_recipe.py", '"""A recipe."""', "", []),
        ("own_recipe.py", "(SCALE, self.power)", "(SCALE,\n          self.power)", []),
        ("own_recipe.py", "optim.SGD(lr=0.1)", "optim.SGD(lr=0.3)", []),  # compared as a value, where it is used
        ("own_recipe.py", "part = Task()", "part = Task(power=3.0)", []),
        ("own_recipe.py", "SCALE = 1.0", "SCALE = 100.0", ["own_recipe.py (SCALE)"]),
        ("own_recipe.py", "SCALE, self.power", "SCALE, 2 * self.power", ["own_recipe.py (Task)"]),
        ("own_recipe.py", "import math", "import math\nmath.own = 3", ["own_recipe.py (code outside of definitions)"]),
        ("own_losses.py", "** power", "** -power", ["own_losses.py (focal)"]),
        ("own_losses.py", "def unused(x): return x\n", "", ["own_losses.py (unused)"]),
        ("own_shapes.py", "return x", "return x + 1", ["own_shapes.py (flat)"]),  # two imports away
    ],
)
def test_what_counts_as_a_change(folder: Path, file: str, old: str, new: str, changed: list[str]) -> None:
    before = own_code((part(), optim.AdamW(lr=1.0)))
    assert sorted(before) == ["own_losses.py", "own_recipe.py", "own_shapes.py"]
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    assert changed_code(before, own_code(part())) == changed


def test_files_that_come_and_go_are_reported(folder: Path) -> None:
    before = own_code(part())
    (folder / "own_losses.py").write_text("def focal(x, power): return x\ndef unused(x): return x\n")
    assert changed_code(before, own_code(part())) == [
        "own_losses.py (code outside of definitions, focal)",
        "own_shapes.py (all of it)",
    ]


def test_parts_of_launcher_and_of_libraries_have_no_own_code() -> None:
    import recipes.resnet50

    assert own_code(recipes.resnet50.recipe) == {}
