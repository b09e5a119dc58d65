"""Location of a recipe: its file, its dotted name, and the folder from which Python imports that name."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import os
import shlex
import sys
from pathlib import Path

from launcher.errors import UserError, did_you_mean
from launcher.files import kind_of


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a recipe module."""

    path: Path
    """Absolute path of its file."""
    name: str
    """Dotted name, relative to `root`."""
    root: Path
    """Folder above its outermost package."""


def find_recipe(place: str) -> Place:
    """Find the module of a recipe that is given as "recipes/resnet50.py" or "recipes.resnet50".

    Raises UserError if there is no such file (naming the closest match), or if Python could not import the file under
    its name because the name contains a dot or belongs to another module.
    """
    if place.endswith(".py") or "/" in place or os.sep in place or (place and Path(place).is_dir()):
        return place_of(_existing(Path(place)))
    return Place(_by_name(place), place, Path.cwd())


def collision(path: Path, name: str, file: str | None) -> str:
    """Return the error line for a module name that is already taken: by `file`, or by Python if it is None."""
    owner = f"of {file}" if file else "of a module of Python itself"
    return (
        f"{shown(path)}: its module name {name!r} is also that {owner}, so it cannot be imported; rename it, or move "
        "it into a folder that has an (empty) __init__.py and a name of its own"
    )


def shown(path: Path) -> str:
    """Return a path for messages: relative to the current folder if it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


def _existing(path: Path) -> Path:
    if path.is_file():
        if path.suffix in _TABLES:
            raise UserError(f"{path}: {_for_data(path)}")
        return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link out of its package
    if path.is_dir():
        there = _recipes_in(path)
        problem = f"a folder; give one of its recipe files{did_you_mean('', there)}" if there else _for_data(path)
        raise UserError(f"{path}: {problem}")
    if path.exists():
        raise UserError(f"{path}: {kind_of(path.stat())}, not a recipe file")
    if not path.parent.is_dir():
        raise UserError(f"{path}: no such recipe file; there is no folder {str(path.parent)!r} in {Path.cwd()}")
    there = _recipes_in(path.parent)
    close = did_you_mean(path.name, there) if there else f"; {str(path.parent)!r} has no .py files"
    raise UserError(f"{path}: no such recipe file in {Path.cwd()}{close}")


def _for_data(path: Path) -> str:
    return f"no recipe; to write one for the data there: python -m launcher init {shlex.quote(str(path))}"


def _recipes_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.py") if file.name != "__init__.py")


def place_of(path: Path) -> Place:
    """Return the place of the module that a file is or would be; its path is absolute, and it need not exist yet.

    Raises UserError if the name of the file cannot be imported, like `find_recipe`.
    """
    root, pieces = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        pieces.insert(0, root.name)
        root = root.parent
    for piece in pieces:
        if "." in piece:
            raise UserError(f"{path}: cannot be imported: Python reads the dot in {piece!r} as a folder; rename it")
    if len(pieces) == 1:
        _refuse_shadowing(path, root)
    return Place(path, ".".join(pieces), root)


def _refuse_shadowing(path: Path, root: Path) -> None:
    """Raise UserError for a recipe outside of any package that would be imported in place of another module.

    A lone recipe called timm.py, for example, would be imported wherever a library asks for timm.
    """
    copied = os.environ.get("LAUNCHER_CODE")
    if copied and path.is_relative_to(copied):
        return  # a job's copy of the code; the original was checked when the job was submitted and may be importable
    elsewhere = [entry for entry in sys.path if not _same_folder(entry or ".", root)]
    spec = importlib.machinery.PathFinder.find_spec(path.stem, elsewhere)
    origin = spec.origin if spec else None  # A namespace package, a folder without __init__.py, has no origin.
    if origin is not None or path.stem in sys.stdlib_module_names:
        raise UserError(collision(path, path.stem, origin))


def _by_name(name: str) -> Path:
    """Find the file of a module, in the current folder first, without importing anything."""
    if Path(name).is_file() and Path(name).suffix in _TABLES:
        raise UserError(f"{name}: {_for_data(Path(name))}")
    pieces = name.split(".")
    if not all(piece.isidentifier() for piece in pieces):
        raise UserError(f"{name!r}: neither a recipe file (recipes/resnet50.py) nor a module name (recipes.resnet50)")
    places = [str(Path.cwd()), *sys.path]
    origin = None
    for depth, piece in enumerate(pieces):
        spec = importlib.machinery.PathFinder.find_spec(piece, places)
        if spec is None:
            parent = ".".join(pieces[:depth])
            there = [f"{parent}.{file[:-3]}" for place in places for file in _recipes_in(Path(place))] if parent else []
            hint = did_you_mean(name, there) or "; give the path of a recipe file, e.g. recipes/resnet50.py"
            where = f"in {parent!r}" if parent else f"in {Path.cwd()}"
            raise UserError(f"{name}: no such recipe; there is no module {piece!r} {where}{hint}")
        places, origin = list(spec.submodule_search_locations or []), spec.origin
    if origin is None or Path(origin).name == "__init__.py" or not Path(origin).is_file():
        there = [f"{name}.{file[:-3]}" for place in places for file in _recipes_in(Path(place))]
        raise UserError(f"{name}: not a recipe file; give one of its recipes{did_you_mean('', there)}")
    return Path(os.path.abspath(origin))  # noqa: PTH100


def _same_folder(entry: str, folder: Path) -> bool:
    return Path(entry).is_dir() and Path(entry).samefile(folder)
