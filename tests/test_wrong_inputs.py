"""What a user can get wrong: each mistake is a clear line and exit code 2, without a traceback, before any training."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import ROOT, SUPPORT, RunCli
from launcher.cli import main
from mistakes import VARIANT, Mistake, folders, plans, recipes, surroundings

MISTAKES = [*recipes.MISTAKES, *plans.MISTAKES, *surroundings.MISTAKES]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "wrong", raising=False)


def lay_out(mistake: Mistake) -> None:
    if mistake.files:
        mistake.files()
    source = VARIANT.format(changes=mistake.changes) if mistake.changes is not None else mistake.source
    if source is not None:
        Path("wrong.py").write_text(source)


def check_reported(mistake: Mistake, code: int, err: str) -> None:
    """The lines are told and no others, and nothing was begun."""
    assert code == 2
    wanted = (mistake.lines,) if isinstance(mistake.lines, str) else mistake.lines
    reported = err.splitlines()
    assert len(reported) == len(wanted), err
    for line, pattern in zip(reported, wanted, strict=True):
        expected = re.escape("error: " + pattern.replace("{here}", str(Path.cwd()))).replace("…", ".*")
        assert re.fullmatch(expected, line), f"told:   {line}\nwanted: {pattern}"
    assert not list(Path().rglob("step-*")), "a checkpoint was written"
    assert not Path("runs").exists(), "a wrong recipe left a run dir behind"


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.id.replace(" ", "-") for mistake in MISTAKES])
def test_a_mistake_is_reported_in_clear_lines(mistake: Mistake, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(mistake)
    code = main(shlex.split(mistake.words))
    check_reported(mistake, code, capsys.readouterr().err)


def test_there_are_many() -> None:
    assert len({mistake.id for mistake in MISTAKES}) == len(MISTAKES) >= 40


AS_USERS_START_IT = ("wrong type", "override out of range", "broken image", "several at once", "run dir below a file")


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if m.id in AS_USERS_START_IT], ids=lambda m: m.id)
def test_a_process_of_its_own_reports_the_same(mistake: Mistake, run_cli: RunCli) -> None:
    lay_out(mistake)
    done = run_cli(*shlex.split(mistake.words), env={"PYTHONPATH": PATHS})
    # Nothing but the word that it is looking, once, where it came so far.
    assert re.fullmatch(r"([\d-]+ [\d:]+  looking at data, weights and phases\n)?", done.out)
    check_reported(mistake, done.code, done.err)


PATHS = f"{ROOT}:{SUPPORT}"

FOLDER_RECIPE = VARIANT.format(
    changes="data=data.ImageFolder(root='pets'), freeze_plan=phases.linear_probe(epochs=1), batch_size=2"
)


@pytest.fixture
def a_run(in_an_empty_folder: None, capsys: pytest.CaptureFixture[str]) -> Callable[[], None]:
    """runs/wrong has a run that is finished; the call makes it one that was cut after its last checkpoint."""
    folders("pets/cat/1.png", "pets/cat/2.png", "pets/dog/1.png", "pets/dog/2.png")()
    Path("wrong.py").write_text(FOLDER_RECIPE)
    assert main(["wrong.py"]) == 0
    capsys.readouterr()
    return lambda: shutil.rmtree("runs/wrong/final")


def reported_by(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that is told; the run that is there stays as it is."""
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    sys.modules.pop("wrong", None)
    assert main(words.split()) == 2
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line.removeprefix("error: ").rstrip()


@pytest.mark.slow
def test_a_run_dir_of_another_recipe(a_run: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    for finished in (True, False):
        if not finished:
            a_run()
        assert reported_by("wrong.py batch_size=3 head.dropout=0.1", capsys) == (
            "--run-dir runs/wrong: holds a run of another recipe (head.dropout: 0.0 there, 0.1 now; batch_size: 2 "
            "there, 3 now); give another --run-dir, or undo the change"
        )


@pytest.mark.slow
def test_resume_never_where_there_is_a_run(a_run: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    a_run()
    assert reported_by("wrong.py --resume never", capsys) == (
        "--resume never: runs/wrong already holds a run; give another --run-dir, or --resume auto to continue it"
    )


@pytest.mark.slow
def test_a_run_dir_of_other_data(a_run: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    a_run()
    folders("pets/cat/3.png")()
    line = reported_by("wrong.py", capsys)
    assert line.startswith("--run-dir runs/wrong: the data are not those that the run began with (")
    assert "training: 2 images then, 3 now" in line
    assert line.endswith("; bring them back, or give another --run-dir")


@pytest.mark.slow
def test_resume_must_where_all_checkpoints_are_damaged(
    a_run: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    a_run()
    for manifest in Path("runs/wrong/checkpoints").glob("step-*/MANIFEST.json"):
        manifest.unlink()
    sys.modules.pop("wrong", None)
    assert main(["wrong.py", "--resume", "must"]) == 2
    assert capsys.readouterr().err == "error: --resume must: runs/wrong holds no complete checkpoint to continue from\n"


@pytest.mark.slow
def test_a_recipe_json_that_nobody_can_read(a_run: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    a_run()
    Path("runs/wrong/recipe.json").write_text("{")
    assert reported_by("wrong.py", capsys).startswith("runs/wrong/recipe.json: cannot be read (")


@pytest.mark.slow
def test_weights_of_an_unfinished_run(a_run: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    a_run()
    Path("wrong.py").write_text(
        VARIANT.format(changes="backbone=backbones.Torchvision(name='resnet18', weights='runs/wrong')")
    )
    assert reported_by("wrong.py --run-dir other", capsys) == (
        "backbone.weights='runs/wrong': the folder has no final/model.safetensors; that run has not ended"
    )
    assert not Path("other").exists()
