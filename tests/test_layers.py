"""Imports point down only, files stay small, and what must start quickly does not import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import ROOT

PACKAGE = ROOT / "launcher"
FILES = sorted(PACKAGE.rglob("*.py"))

MAX_LINES = 400

ORDER = (
    *("__main__", "cli", "launcher"),  # launcher/__init__.py: what a recipe's author uses, and load() a run's user
    *("tuning", "init", "verify", "planning", "export", "report", "inference", "cluster", "training"),
    *("backbones", "data", "assets", "recipe", "metrics"),
    *("console", "text", "compat", "shadowed_libraries", "files", "errors"),
)
"""The rooms, from the top down: a room imports only what stands below it. Parts (backbones, data) build what `recipe`
declares, and tasks are made of `metrics`; `export` adds a report to what it uploads."""


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
            inside = len(name.split(".")) > 1 and name.split(".")[1] in ORDER
            yield node.lineno, name if inside else "launcher"


def test_imports_point_down_only() -> None:
    up = []
    for file in FILES:
        room = layer_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
        assert room in ORDER, f"a new room, {room!r}: say in ORDER where it stands"
        below = ORDER[ORDER.index(room) :]
        up += [
            f"{file.relative_to(ROOT)}:{line}: {room} imports {name}"
            for line, name in imported_modules(file)
            if layer_of(name) not in below and not (room == "cli" and name == "launcher")  # its version
        ]
    assert not up


def test_no_modules_import_each_other() -> None:
    """Neither at once, nor inside functions, nor for type checkers: each file can be read without those above it."""
    arrows: dict[str, set[str]] = {}
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
    for module, file in modules.items():
        arrows[module] = set()
        for _, name in imported_modules(file):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            arrows[module] |= {name} - {module, "launcher", ""}
    while ends := {module for module, below in arrows.items() if not below}:
        arrows = {module: below - ends for module, below in arrows.items() if module not in ends}
    assert not arrows, f"in a circle, or above one: {sorted(arrows)}"


def test_an_arrow_up_is_seen(tmp_path: Path) -> None:
    """The reader of imports finds every form in which one can be written."""
    file = PACKAGE / "recipe" / "does_not_exist.py"
    forms = [
        ("import launcher.cli", "launcher.cli"),
        ("from launcher.training import loop", "launcher.training.loop"),
        ("from launcher import cluster", "launcher.cluster"),
        ("from launcher import Recipe", "launcher"),
        ("def f():\n    from ..planning.plan import show", "launcher.planning.plan.show"),
    ]
    for source, name in forms:
        copy = tmp_path / "launcher" / "recipe" / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(source)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "ROOT", tmp_path)
            assert [found for _, found in imported_modules(copy)] == [name]


SEVERAL_LAZY_IMPORTS = {
    "train": 2,  # the loop once the processes have met, and the end of the run once it is trained
}


def test_a_command_has_one_lazy_import_its_body() -> None:
    """It parses, calls one function below, and prints: what that function needs, its own module imports."""
    counts = {}
    for file in sorted((PACKAGE / "cli").glob("*.py")):
        functions = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
        inside = {node for function in functions for node in ast.walk(function)}
        counts[file.stem] = sum(isinstance(node, (ast.Import, ast.ImportFrom)) for node in inside)
    assert {name: n for name, n in counts.items() if n > SEVERAL_LAZY_IMPORTS.get(name, 1)} == {}


def test_files_stay_small() -> None:
    sizes = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES}
    assert {name: lines for name, lines in sizes.items() if lines > MAX_LINES} == {}


SLOW = ("torch", "torchvision", "timm", "datasets", "sklearn", "accelerate", "pandas", "matplotlib")


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "import launcher, launcher.recipe.overrides, launcher.recipe.serialization, launcher.recipe.loading",
        "from launcher.cli import main; main(['--help']); main(['train', '--help']); main(['--version'])",
        "from launcher.cli import main; main(['no/such/recipe.py'])",
        "from launcher.cli import main; [main([command, 'nowhere']) for command in ('status', 'compare', 'logs')]",
        "from launcher.cli import main; main(['cache'])",
        "import recipes.digits",
    ],
)
def test_starts_without_torch(source: str) -> None:
    show = f"import sys; print([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{source}\n{show}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
