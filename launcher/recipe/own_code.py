"""Hashes of the code of a user's own parts, to tell which code has changed.

A recipe's values are compared field by field, but they do not show what its own classes and functions do. Comments,
docstrings and layout do not count.
"""

from __future__ import annotations

import ast
import hashlib
import site
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from launcher.errors import UserError
from launcher.recipe.dotted import dataclasses_in

Code = dict[str, dict[str, str]]
"""Hash of each top-level definition by its name, by file relative to the folder from which it is imported."""

_OUTSIDE = "code outside of definitions"
_OF_PYTHON = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_OF_SITE = [*site.getsitepackages(), site.getusersitepackages()]
_INSTALLED = {Path(__file__).resolve().parents[1], *(Path(folder).resolve() for folder in [*_OF_PYTHON, *_OF_SITE])}
"""Folders of launcher and of the installed libraries."""


def own_code(recipe: object) -> Code:
    """Return the code that a recipe's own parts run.

    This is the code in the files of their classes and in the user's files that these import. It is empty if all parts
    are launcher's or a library's: such a recipe is nothing but a value.

    Raises UserError for a file that can no longer be read.
    """
    return {str(relative): _definitions(module, file) for module, file, relative in _reached(own_types(recipe))}


def changed_code(then: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return one line for each file that has changed: "losses.py (focal, Weighted)"."""
    lines = []
    for file in sorted({*then, *now}):
        before, after = then.get(file, {}), now.get(file, {})
        names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        if names:
            lines.append(f"{file} ({', '.join(names)})" if file in then and file in now else f"{file} (all of it)")
    return lines


def is_own(kind: type) -> bool:
    """Return whether a class is the user's own: neither launcher's nor an installed library's."""
    file = _file_of(sys.modules.get(kind.__module__))
    return file is not None and not _is_installed(file)


def own_types(value: object) -> set[type]:
    """Return the user's own classes among those of a recipe and its parts."""
    return {type(part) for part in dataclasses_in(value) if is_own(type(part))}


def code_of_types(kinds: set[type]) -> list[str]:
    """Return a sorted list of text with the hashes of the code of the user's own classes, one item per module."""
    modules = _reached(filter(is_own, kinds))
    return sorted(repr(sorted(_definitions(module, file).items())) for module, file, _ in modules)


def _reached(kinds: Iterable[type]) -> list[tuple[ModuleType, Path, Path]]:
    """Return the user's modules among those of classes and among all modules from which these take anything.

    Each item is the module, its file, and the file relative to the folder from which it is imported.
    """
    modules: dict[str, tuple[ModuleType, Path, Path]] = {}
    waiting = list({sys.modules[kind.__module__] for kind in kinds})
    while waiting:
        module = waiting.pop()
        file = _file_of(module)
        if file is None or module.__name__ in modules or _is_installed(file):
            continue
        depth = len(module.__name__.split(".")) - (file.name != "__init__.py")
        modules[module.__name__] = (module, file, file.relative_to(file.parents[depth]))
        for value in list(vars(module).values()):
            name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(name, str) and name in sys.modules:
                waiting.append(sys.modules[name])
    return [modules[name] for name in sorted(modules)]


def _file_of(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file and file.endswith(".py") else None


def _is_installed(file: Path) -> bool:
    return any(file.is_relative_to(folder) for folder in _INSTALLED)


def _definitions(module: ModuleType, file: Path) -> dict[str, str]:
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{file}: cannot be read again ({error})") from error
    pieces: dict[str, list[str]] = {}
    for statement in tree.body:
        name = _name_of(statement, module)
        if name is not None:
            pieces.setdefault(name, []).append(ast.unparse(_without_docstrings(statement)))
    return {
        name: hashlib.blake2b("\n".join(lines).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
        for name, lines in pieces.items()
    }


def _name_of(statement: ast.stmt, module: ModuleType) -> str | None:
    """Return the name under which a statement is compared, or None if it is not compared.

    Docstrings do not count, and the values of recipes and parts are compared elsewhere.
    """
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return statement.name
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return None
    targets: list[Any] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    if names and len(names) == len(targets):
        values = [getattr(module, name, None) for name in names]
        return None if all(any(True for _ in dataclasses_in(value)) for value in values) else names[0]
    return _OUTSIDE


def _without_docstrings(statement: ast.stmt) -> ast.stmt:
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            kept = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            node.body = kept or [ast.Pass()]
    return statement
