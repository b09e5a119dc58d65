"""What users, file systems and terminals do to a run: odd names, Ctrl-C, bugs in parts of one's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import PIL.Image
import pytest

from commands import ROOT, SUPPORT, RunCli
from mistakes import VARIANT

PATHS = f"{ROOT}:{SUPPORT}"


def test_names_with_spaces_and_of_other_scripts(tmp_path: Path, run_cli: RunCli) -> None:
    folder = tmp_path / "a folder" / "图像 recipes"
    folder.mkdir(parents=True)
    (folder / "小 test.py").write_text(VARIANT.format(changes="freeze_plan=phases.linear_probe(epochs=1)"))
    words = (str(folder / "小 test.py"), "--run-dir", "a run 目录/x y", "--workers", "1")
    done = run_cli(*words, env={"PYTHONPATH": PATHS})
    assert (done.code, done.err) == (0, "")
    assert "'a run 目录/x y" in done.out.splitlines()[-1], "what to run next must be quoted for the shell"
    assert (tmp_path / "a run 目录/x y/final/model.safetensors").is_file()


def picture(path: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 - names that are no text
    with open(path, "wb") as file:  # noqa: PTH123
        PIL.Image.new("RGB", (20, 20)).save(file, "PNG")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_file_names_that_are_no_text(tmp_path: Path, run_cli: RunCli) -> None:
    root = os.fsencode(tmp_path / "pets")
    for kind in (b"ca\nt", b"d\xe9g"):
        for name in (b"1\n2.png", b"caf\xe9.png", b"a b.png", "图.png".encode()):
            picture(root + b"/" + kind + b"/" + name)
    open(root + b"/ca\nt/bro\nken\xe9.png", "wb").close()  # noqa: PTH123
    changes = "batch_size=2, freeze_plan=phases.linear_probe(epochs=1), data=data.ImageFolder(root='pets'{})"
    (tmp_path / "stops.py").write_text(VARIANT.format(changes=changes.format("")))
    (tmp_path / "skips.py").write_text(VARIANT.format(changes=changes.format(", on_bad_image='skip'")))
    environment = {"PYTHONPATH": PATHS, "PYTHONIOENCODING": "utf-8:strict"}
    broken = rf"{tmp_path}/pets/ca\nt/bro\nken\udce9.png (empty file)"

    done = run_cli("stops.py", env=environment)
    assert done.code == 2
    assert f"1 of 9 images cannot be read: {broken};" in done.err
    done = run_cli("skips.py", "--workers", "2", env=environment)
    assert (done.code, done.err) == (0, "")
    run_dir = tmp_path / "runs/skips"
    assert (run_dir / "skipped.txt").read_text() == f"{broken}\n"
    assert json.loads((run_dir / "final/classes.json").read_text()) == ["ca\nt", "d\udce9g"]
    rows = [json.loads(row) for row in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert "recall/d\udce9g" in rows[-1]["val"]
    assert "finished already" in run_cli("skips.py", env=environment).out
    planned = run_cli("plan", "skips.py", env=environment)
    assert planned.code == 0
    assert rf"    {broken}" in planned.out.splitlines()


BUG = """
from launcher.recipe.part import part

calls = []


@part
class Mine(tasks.Classification):
    def build(self, splits):
        task = super().build(splits)
        own = task.metrics

        def metrics(outputs, targets):
            calls.append(1)
            return own(outputs, targets) if len(calls) < 3 else 1 / 0

        task.metrics = metrics
        return task
"""


def test_a_bug_in_the_middle_ends_the_run_and_its_workers(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "buggy.py").write_text(VARIANT.format(changes="task=Mine()").replace("\nrecipe", f"{BUG}\n\nrecipe"))
    done = run_cli("buggy.py", "--workers", "2", env={"PYTHONPATH": PATHS})
    assert done.code == 1
    assert done.err.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert list((tmp_path / "runs/buggy/checkpoints").glob("step-*")), "the epoch before is saved"


@pytest.mark.slow
def test_ctrl_c_in_an_epoch(tmp_path: Path) -> None:
    """As a terminal sends it: to all processes of the run."""
    (tmp_path / "long.py").write_text(VARIANT.format(changes="freeze_plan=phases.linear_probe(epochs=10_000)"))
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "long.py", "--workers", "2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": PATHS},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "runs/long/log.txt"
    try:
        while not (log.exists() and "3/10000" in log.read_text()):
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # with its data workers
        process.wait()
        raise
    assert process.returncode in (130, -signal.SIGINT)  # Python may end itself by the signal; a shell shows 130
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
