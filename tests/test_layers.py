"""Imports point down only, files stay small, and what must start quickly does not import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "launcher"
FILES = sorted(PACKAGE.rglob("*.py"))

MAX_LINES = 400

BASE = {"errors", "files", "output", "shadowing", "text"}

BELOW = {
    "errors": set(),
    "output": set(),
    "text": set(),
    "shadowing": set(),
    "files": {"errors"},
    "metrics": set(),
    "recipe": {"metrics", *BASE},
    "launcher": {
        "recipe",
        "results",
        "shadowing",
    },  # launcher/__init__.py: what a recipe's author uses, and load() a run's user
    "training": {"recipe", "metrics", *BASE},
    "cluster": {"training", "recipe", *BASE},
    "results": {"training", "recipe", "metrics", *BASE},
    "cli": {"cluster", "results", "training", "recipe", "launcher", *BASE},
    "__main__": {"cli"},
}
"""What the files of each layer may import, besides their own layer."""


def layer_of(module: str) -> str:
    """The layer of a dotted module name within the launcher."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 and pieces[1] != "__init__" else "launcher"


def imported_modules(file: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a file imports from the launcher, also inside functions and for type checkers."""
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *filter(None, [node.module])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] != "launcher":
                continue
            # `from launcher import Recipe` is the package's own namespace; `from launcher import errors` is a module.
            inside = len(name.split(".")) > 1 and name.split(".")[1] in BELOW
            yield node.lineno, name if inside else "launcher"


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(PACKAGE)) for file in FILES])
def test_imports_point_down_only(file: Path) -> None:
    layer = layer_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
    assert layer in BELOW, f"a new layer, {layer!r}: say in BELOW what it may import"
    up = [
        f"{file.relative_to(ROOT)}:{line}: {layer} imports {name}"
        for line, name in imported_modules(file)
        if layer_of(name) not in BELOW[layer] | {layer}
    ]
    assert not up


def test_an_arrow_up_is_seen(tmp_path: Path) -> None:
    """The reader of imports finds every form in which one can be written."""
    file = PACKAGE / "recipe" / "does_not_exist.py"
    forms = [
        ("import launcher.cli", "launcher.cli"),
        ("from launcher.training import runner", "launcher.training.runner"),
        ("from launcher import cluster", "launcher.cluster"),
        ("from launcher import Recipe", "launcher"),
        ("def f():\n    from ..results.plan import show", "launcher.results.plan.show"),
    ]
    for source, name in forms:
        copy = tmp_path / "launcher" / "recipe" / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(source)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "ROOT", tmp_path)
            assert [found for _, found in imported_modules(copy)] == [name]


def test_files_stay_small() -> None:
    sizes = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES}
    assert {name: lines for name, lines in sizes.items() if lines > MAX_LINES} == {}


SLOW = ("torch", "torchvision", "timm", "datasets", "sklearn", "accelerate", "pandas", "matplotlib")


@pytest.mark.parametrize(
    "source",
    [
        "import launcher, launcher.recipe.overrides, launcher.recipe.serialization, launcher.recipe.loading",
        "from launcher.cli import main; main(['--help']); main(['train', '--help']); main(['--version'])",
        "from launcher.cli import main; main(['no/such/recipe.py'])",
        "import recipes.digits",
    ],
)
def test_starts_without_torch(source: str) -> None:
    show = f"import sys; print([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{source}\n{show}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
