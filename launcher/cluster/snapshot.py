"""Copy of a job's code at submission: what runs is what was submitted, whatever changes meanwhile."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from launcher.errors import UserError

SUFFIXES = {".py", ".pyi", ".toml", ".cfg", ".ini", ".json", ".yaml", ".yml", ".txt", ".md", ".sh", ".sbatch"}
LARGEST_BYTES = 1 << 20
MOST_FILES = 5_000
_NOT_CODE = {"__pycache__", "node_modules", "site-packages", "runs"}


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Copy of the code below `folder`, and the recipe's place in it."""

    folder: Path
    recipe: Path
    commit: str | None
    """Git commit, if the code is under git."""
    changed: bool
    """True if the tree held changes that no commit has."""


def take(recipe: Path, module_name: str, folder: Path, words: Sequence[str]) -> Snapshot:
    """Copy the recipe's code to `folder`, and this package's too unless it is installed for good.

    In a git tree, all files are copied that look like code and are not ignored; without git, those beside the recipe.
    Data are not copied: a job reads them from where they are.

    Raises:
        UserError: There is too much to copy, or no room for it.
    """
    recipe = recipe.resolve()
    root = _git_root(recipe.parent)
    commit, changed = (None, False) if root is None else _state(root)
    top = root or recipe.parents[module_name.count(".")]
    files = _known_to_git(root) if root else _below(top)
    chosen = [file for file in files if _is_code(top / file)]
    if len(chosen) > MOST_FILES:
        raise UserError(
            f"{top}: {len(chosen)} files of code to take along, more than {MOST_FILES}; put the recipe in git"
        )
    package = Path(__file__).resolve().parents[1]
    try:
        _copy(top, chosen, folder)
        # An editable install may change, too; what is in site-packages is assumed to stay.
        if "site-packages" not in package.parts and not package.is_relative_to(top):
            _copy(package.parent, (file.relative_to(package.parent) for file in package.rglob("*.py")), folder)
        inside = folder / recipe.relative_to(top)
        origin = {"recipe": str(recipe), "commit": commit, "changed": changed, "words": list(words)}
        origin["submitted"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        (folder / "SUBMITTED.json").write_text(json.dumps(origin, indent=1))
    except OSError as error:
        raise UserError(f"{folder}: the code cannot be copied there ({error.strerror})") from error
    return Snapshot(folder, inside, commit, changed)


def _copy(top: Path, files: Iterable[Path], folder: Path) -> None:
    for file in files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(top / file, target)


def _is_code(path: Path) -> bool:
    return path.suffix in SUFFIXES and path.is_file() and path.stat().st_size <= LARGEST_BYTES


def _below(top: Path) -> list[Path]:
    files: list[Path] = []
    todo = [top]
    while todo and len(files) <= MOST_FILES:
        for path in sorted(todo.pop().iterdir()):
            if path.name.startswith(".") or path.name in _NOT_CODE or (path / "pyvenv.cfg").exists():
                continue
            if path.is_dir() and not path.is_symlink():
                todo.append(path)
            elif path.suffix == ".py":
                files.append(path.relative_to(top))
    return files


def _git_root(folder: Path) -> Path | None:
    path = _git(folder, "rev-parse", "--show-toplevel")
    return Path(path.strip()).resolve() if path and path.strip() else None


def _state(root: Path) -> tuple[str | None, bool]:
    commit = (_git(root, "rev-parse", "HEAD") or "").strip() or None
    return commit, commit is None or bool((_git(root, "status", "--porcelain") or "").strip())


def _known_to_git(root: Path) -> list[Path]:
    names = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard") or ""
    return [Path(name) for name in names.split("\0") if name]


def _git(folder: Path, *words: str) -> str | None:
    """Return the output of git, or None if it is not installed or fails."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, errors="surrogateescape", check=False)  # noqa: S603
    return done.stdout if done.returncode == 0 else None
