"""No home folder, own files that shadow libraries, and what an error line may hold."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from commands import ROOT, SUPPORT, RunCli
from launcher.cli.errors import LONGEST_LINE, report_problems
from launcher.cli.home import settle_home
from launcher.errors import UserError
from launcher.recipe.loading import load_recipe
from launcher.shadowed_libraries import shadowing

RECIPE = """from launcher import Recipe, backbones, data, heads, phases, tasks
recipe = Recipe(backbone=backbones.Torchvision(name="resnet18", weights=None), head=heads.Linear(),
    task=tasks.Classification(), data={}, freeze_plan=phases.full_finetune(epochs=1))
"""


@pytest.mark.parametrize("name", ["torch.py", "accelerate.py", "types.py", "numpy/__init__.py"])
def test_what_lies_beside_a_recipe_must_not_shadow_a_library(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise RuntimeError")
    (tmp_path / "mine.py").write_text(RECIPE.format("data.ImageFolder(root='pets')"))
    with pytest.raises(UserError, match=rf"{name.partition('/')[0]}: Python would import it in place of .*; rename it"):
        load_recipe(str(tmp_path / "mine.py"))
    assert str(tmp_path) not in sys.path


def test_datasets_matters_only_with_data_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # loading adds the folder, whose datasets.py others would find
    for name in ("datasets.py", "helpers.py", "test.py"):
        (tmp_path / name).write_text("")
    for name, data in (("folder", "data.ImageFolder(root='pets')"), ("hub", "data.HuggingFace(path='cifar10')")):
        (tmp_path / f"{name}.py").write_text(RECIPE.format(data))
    load_recipe(str(tmp_path / "folder.py"))
    with pytest.raises(UserError, match=r"datasets\.py: Python would import it in place of a library, datasets, that"):
        load_recipe(str(tmp_path / "hub.py"))


def test_a_file_of_the_current_folder_is_reported_before_it_is_imported(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("print('imported')")
    (tmp_path / "typing.py").write_text("print('imported')")
    done = run_cli("plan", "recipe.py")
    assert (done.code, done.out) == (2, "")
    assert [line.split(":")[1] for line in done.err.splitlines()] == [" torch.py", " typing.py"]


def test_the_folder_of_the_libraries_is_not_refused() -> None:
    assert shadowing(os.path.dirname(os.__file__)) == []  # noqa: PTH120


def test_without_a_home_folder_a_temporary_one_is_used_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environ: dict[str, str] = {}
    folder = tmp_path / f"launcher-home-{os.getuid()}"
    assert f"caches and downloads go to {folder}. Set HOME, or LAUNCHER_CACHE" in (settle_home(environ) or "")
    assert environ["HOME"] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(UserError, match="is another user's"):
        settle_home({})


def test_error_lines_are_of_one_line_and_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    report_problems(["optim.lr=\x1b[31m\u202e\x07\nx: should be a number", "y" * 100_000])
    first, second, end = capsys.readouterr().err.split("\n")
    assert first == r"error: optim.lr=\x1b[31m\u202e\x07 x: should be a number"
    assert len(second) < LONGEST_LINE + 20
    assert end == ""


def test_root_of_the_tests_is_fine() -> None:
    assert shadowing(str(ROOT)) == shadowing(str(ROOT / "tests")) == []


@pytest.mark.slow
def test_a_current_folder_that_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    words = shlex.join([sys.executable, "-m", "launcher", "plan", str(SUPPORT / "tiny.py")])
    done = subprocess.run(
        ["bash", "-c", f"cd {folder} && rmdir {folder} && {words}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: the current folder is gone; change to one that is there (cd)\n",
    )


def test_a_cache_that_is_a_file(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "file").touch()
    done = run_cli("cache", env={"LAUNCHER_CACHE": str(tmp_path / "file")})
    assert (done.code, done.err) == (2, f"error: LAUNCHER_CACHE={tmp_path / 'file'}: is a file; name a folder\n")


@pytest.mark.parametrize("words", ["init ~nobody-of-this-name/x", "plan {tiny} --assets ~nobody-of-this-name/x"])
def test_a_home_of_nobody(words: str, run_cli: RunCli) -> None:
    done = run_cli(*words.format(tiny=SUPPORT / "tiny.py").split())
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert "~nobody-of-this-name/x" in done.err
