"""The code that goes with a job."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from launcher.cluster import snapshot
from launcher.cluster.snapshot import take
from launcher.errors import UserError


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "recipes").mkdir(parents=True)
    (root / "recipes/__init__.py").touch()
    (root / "recipes/mine.py").write_text("seed = 1\n")
    (root / "helpers.py").write_text("x = 1\n")
    (root / "photo.png").write_bytes(b"not code")
    (root / "big.json").write_bytes(b" " * (snapshot.LARGEST_BYTES + 1))
    (root / ".venv/lib").mkdir(parents=True)
    (root / ".venv/pyvenv.cfg").touch()
    (root / ".venv/lib/library.py").touch()
    return root


def copied(folder: Path) -> set[str]:
    ours = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {str(path) for path in ours if path.parts[0] != "launcher"}


def git(root: Path, *words: str) -> None:
    name = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(root), *name, *words], check=True, capture_output=True)


@pytest.mark.slow
def test_without_git(project: Path, tmp_path: Path) -> None:
    taken = take(project / "recipes/mine.py", "recipes.mine", tmp_path / "copy", ["mine.py"])
    assert copied(tmp_path / "copy") == {"recipes/__init__.py", "recipes/mine.py", "helpers.py", "SUBMITTED.json"}
    assert (taken.commit, taken.recipe) == (None, tmp_path / "copy/recipes/mine.py")
    # This package is installed from a folder that may change, so it goes along.
    assert (tmp_path / "copy/launcher/__main__.py").is_file()


@pytest.mark.slow
def test_of_a_git_tree_what_git_knows_or_could_know(project: Path, tmp_path: Path) -> None:
    (project / ".gitignore").write_text("secret.py\n.venv\n")
    (project / "secret.py").touch()
    git(project, "init")
    git(project, "add", "-A")
    git(project, "commit", "-m", "one")
    taken = take(project / "recipes/mine.py", "recipes.mine", tmp_path / "clean", [])
    assert not taken.changed
    assert len(taken.commit or "") == 40
    (project / "recipes/mine.py").write_text("seed = 2\n")
    (project / "new.py").touch()
    taken = take(project / "recipes/mine.py", "recipes.mine", tmp_path / "changed", ["a b"])
    assert taken.changed
    assert copied(tmp_path / "changed") - copied(tmp_path / "clean") == {"new.py"}
    assert "secret.py" not in copied(tmp_path / "changed")
    assert taken.recipe.read_text() == "seed = 2\n"
    origin = json.loads((tmp_path / "changed/SUBMITTED.json").read_text())
    assert (origin["commit"], origin["changed"], origin["words"]) == (taken.commit, True, ["a b"])


@pytest.mark.slow
def test_too_much(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MOST_FILES", 2)
    with pytest.raises(UserError, match="3 files of code to take along, more than 2"):
        take(project / "recipes/mine.py", "recipes.mine", tmp_path / "copy", [])
