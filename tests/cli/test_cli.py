"""The command line: what is a command, where options may stand, and how mistakes are told."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import launcher.cli.errors
from commands import ROOT, RunCli, run_python
from launcher.cli import main
from launcher.cli.app import command_names

OWN_PARTS = """
import dataclasses

from launcher import Preprocessing, Recipe, heads, phases, tasks


@dataclasses.dataclass(frozen=True)
class Backbone:
    def build(self):
        raise NotImplementedError

    def preprocessing(self):
        return Preprocessing(image_size=8, resize_size=8)


@dataclasses.dataclass(frozen=True)
class Data:
    wish: str = ""

    def build(self, target_kind, seed):
        raise ZeroDivisionError(f"a bug: {self.wish}")


recipe = Recipe(
    backbone=Backbone(),
    head=heads.Linear(),
    task=tasks.Classification(),
    data=Data(),
    freeze_plan=phases.linear_probe(epochs=1),
)
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("own_recipes.ok", "own_recipes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    Path("own_recipes").mkdir()
    Path("own_recipes/__init__.py").touch()
    Path("own_recipes/ok.py").write_text(OWN_PARTS)
    return tmp_path


@pytest.mark.slow
def test_the_console_script_is_the_same_command(tmp_path: Path) -> None:
    (target,) = re.findall(r'^vision-launcher = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    module, _, function = target.partition(":")
    done = run_python("-c", f"from {module} import {function}; {function}()", "nothing.py", cwd=tmp_path)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err == run_python("-m", "launcher", "nothing.py", cwd=tmp_path).err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "train" in out
    assert "plan" in out
    names = [line.split()[0] for line in out.splitlines() if re.match(r"  [a-z][a-z-]*  ", line)]
    assert sorted(names) == sorted(name for name in command_names() if name != "job")
    assert "..." not in out.partition("Begin:")[2]
    assert "Show what training would do, and all that is wrong with it, without training." in " ".join(out.split())
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--run-dir", "--resume", "--micro-batch", "--workers", "optim.lr=3e-4"))
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"launcher {launcher.__version__}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "no recipe given; e.g. python -m launcher recipes/digits.py (or --help)"),
        ("plann own_recipes/ok.py", "plann: neither a command nor a recipe; did you mean 'plan'?"),
        ("own_recipes/okk.py", "own_recipes/okk.py: no such recipe file in {cwd}; did you mean 'ok.py'?"),
        ("train own_recipes/okk.py", "own_recipes/okk.py: no such recipe file in {cwd}; did you mean 'ok.py'?"),
        ("--run-dir x own_recipes/okk.py", "own_recipes/okk.py: no such recipe file in {cwd}; did you mean 'ok.py'?"),
        ("plan", "Missing argument 'RECIPE'."),
        (
            "optim.lr=3 own_recipes/ok.py",
            "optim.lr=3: an override, but the recipe comes first: python -m launcher RECIPE optim.lr=3",
        ),
        (
            "--run-dir x plan own_recipes/ok.py",
            "plan: a command comes first: python -m launcher plan RECIPE ...",
        ),
        (
            "own_recipes/ok.py --lr 3",
            "No such option: --lr; fields of the recipe are set without dashes: optim.lr=3e-4; all options: "
            "python -m launcher train --help",
        ),
        (
            "own_recipes/ok.py --resume always",
            "Invalid value for '--resume': 'always' is not one of 'auto', 'must', 'never'.",
        ),
        ("plan own_recipes/ok.py optim.lrr=1", "optim.lrr: AdamW has no field 'lrr'; did you mean 'lr'?"),
        # Options may stand anywhere among the overrides.
        (
            "own_recipes/ok.py --workers 0 optim.lr=0 --run-dir x",
            "optim.lr=0.0: input should be greater than 0",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert capsys.readouterr() == ("", f"error: {line.format(cwd=Path.cwd())}\n")
    assert not Path("x").exists()


@pytest.mark.parametrize(
    "words",
    [
        "own_recipes/ok.py --micro-batch 0",
        "own_recipes/ok.py --micro-batch many",
        "own_recipes/ok.py --workers x",
        "own_recipes/ok.py --stop-at tomorrow",
        "own_recipes/ok.py --stop-at 2020-01-01T00:00",
        "plan own_recipes/ok.py --processes 0",
    ],
)
def test_numbers_and_times_are_checked(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    line = capsys.readouterr().err
    option, value = words.split()[-2:]
    assert line.startswith((f"error: Invalid value for '{option}': ", f"error: {option} {value!r}: "))
    assert line.count("\n") == 1


def test_every_problem_has_its_line(run_cli: RunCli) -> None:
    done = run_cli("own_recipes/ok.py", "optim.lrr=1", "batch_size=0", "oops", env={"WORLD_SIZE": "2"})
    assert done.code == 2
    assert done.out == ""
    assert [line.split(":")[:2] for line in done.err.splitlines()] == [
        ["error", " WORLD_SIZE=2, but RANK is not set; unset WORLD_SIZE, or start with torchrun"],
        ["error", " oops"],
        ["error", " optim.lrr"],
        ["error", " batch_size=0"],
    ]


def test_a_mistake_in_a_users_part_is_a_line_that_names_the_place(run_cli: RunCli) -> None:
    done = run_cli("plan", "own_recipes/ok.py", "data.wish=tell me")
    assert done.code == 2
    assert "Traceback" not in done.err
    assert re.search(r"error: data: .*ZeroDivisionError: a bug: tell me .*ok\.py:\d+", done.err), done.err


@pytest.mark.slow
def test_a_bug_of_ours_keeps_its_traceback(in_a_folder_of_recipes: Path) -> None:
    source = (
        "import sys, launcher.planning.plan as plan\n"
        "plan.show = lambda *_, **__: {}['a bug']\n"
        "from launcher.cli import main\n"
        "main(['plan', 'own_recipes/ok.py'])"
    )
    done = run_python("-c", source, cwd=in_a_folder_of_recipes)
    assert done.code == 1
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1] == "KeyError: 'a bug'"


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_130(in_a_folder_of_recipes: Path) -> None:
    Path("own_recipes/slow.py").write_text("import time\nopen('reached', 'w').close()\ntime.sleep(600)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "plan", "own_recipes/slow.py"],
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    try:
        while not Path("reached").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (130, "interrupted\n")


def test_another_process_speaks_after_the_main_one_had_its_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("launcher.cli.errors.time.sleep", waited.append)
    monkeypatch.setenv("RANK", "0")
    assert main(["plan", "nothing.py"]) == 2
    assert capsys.readouterr().err.startswith("error: nothing.py: no such recipe file")
    assert waited == []
    monkeypatch.setenv("RANK", "3")
    assert main(["plan", "nothing.py"]) == 2
    assert capsys.readouterr().err.startswith("error: [process 3 on ")
    assert waited == [launcher.cli.errors.SECONDS_FOR_MAIN_PROCESS]


@pytest.mark.slow
def test_two_processes_report_a_mistake_once() -> None:
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "launcher", "own_recipes/ok.py", "optim.lrr=1"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "error: " in line and "lrr" in line]
    assert said == ["error: optim.lrr: AdamW has no field 'lrr'; did you mean 'lr'?"]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("predict run a.png --batch-size 3", "all options: python -m launcher predict --help"),
        ("logs run --lines 3", "all options: python -m launcher logs --help"),
        ("plan a.py --lr 3", "set without dashes: optim.lr=3e-4; all options: python -m launcher plan --help"),
        ("a.py --lr 3", "set without dashes: optim.lr=3e-4; all options: python -m launcher train --help"),
    ],
)
def test_an_unknown_option_is_answered_for_its_command(
    words: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: No such option: --")
    assert line.endswith(hint)
    assert ("optim.lr" in line) == ("optim.lr" in hint)
