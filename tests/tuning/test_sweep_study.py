"""Sweeps: one study, several workers, one of them killed; what they leave; what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from commands import ROOT, SUPPORT, CliResult, RunCli, run_python

RECIPE = str(SUPPORT / "sweep_recipe.py")
PATHS = {"PYTHONPATH": f"{ROOT}:{SUPPORT}"}
RANGES = ("optim.lr=1e-3..1 (log)", "backbone.width=4,8", "freeze_plan.0.epochs=1..2")
TRIALS = 12


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "launcher", "sweep", RECIPE, *words, "--workers", "0"]


def start(folder: Path, *words: str, log: str, **environ: str) -> subprocess.Popen[bytes]:
    """A worker in a session of its own."""
    with (folder / log).open("wb") as output:
        return subprocess.Popen(
            command(*words),
            cwd=folder,
            env=os.environ
            | PATHS
            | {"COMPUTED": str(folder / "computed"), "LAUNCHER_CACHE": str(folder / "cache")}
            | environ,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def until(look: Callable[[], Any], seconds: float = 300) -> Any:
    """What `look` finds, once it finds something. The limit is only against a hang."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


class Finished:
    """A study of two workers, of which one was killed in the middle of a trial."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.study = folder, folder / "study"
        words = (*RANGES, "--trials", str(TRIALS), "--study", "study", "--pruner", "none")
        (folder / "hold").touch()
        doomed = start(folder, *words, log="doomed.txt", HOLD=str(folder / "hold"))
        held = until(lambda: next(self.study.glob("trial-*/checkpoints/step-000003/MANIFEST.json"), None))
        other = start(folder, *words, log="other.txt")
        until(lambda: len(list(self.study.glob("trial-*"))) >= 2)
        os.kill(doomed.pid, signal.SIGKILL)
        doomed.wait()
        (folder / "hold").unlink()
        self.interrupted = held.parents[2]
        third = start(folder, *words, log="third.txt")
        self.codes = other.wait(timeout=500), third.wait(timeout=500)
        self.logs = "".join((folder / name).read_text() for name in ("doomed.txt", "other.txt", "third.txt"))

    def again(self, *words: str, **environ: str) -> CliResult:
        """The same command, and nothing to do."""
        reported = command(*RANGES, "--trials", str(TRIALS), "--study", "study", *words)[1:]
        return run_python(*reported, cwd=self.folder, env=PATHS | environ)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def rows(finished: Finished) -> list[dict[str, Any]]:
    done = finished.again("--as", "json")
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out)
    return found


@pytest.mark.long
def test_no_trial_is_lost_or_doubled(finished: Finished, rows: list[dict[str, Any]]) -> None:
    assert finished.codes == (0, 0), finished.logs
    assert sorted(row["run"] for row in rows) == [f"trial-{number:04d}" for number in range(TRIALS)]
    assert {row["state"] for row in rows} == {"finished"}
    assert sorted(path.name for path in finished.study.glob("trial-*")) == sorted(row["run"] for row in rows)
    for row in rows:
        run_dir = finished.study / row["run"]
        assert row["accuracy"] == json.loads((run_dir / "final/metrics.json").read_text())["accuracy"]
        assert (run_dir / "output.txt").read_text().count("done: accuracy") == 1
        recipe = json.loads((run_dir / "recipe.json").read_text())
        assert recipe["optim"]["lr"] == row["optim.lr"]
        assert recipe["backbone"]["width"] == int(row["backbone.width"])
        assert recipe["freeze_plan"][0]["epochs"] == row["freeze_plan.0.epochs"]
    assert len({row["optim.lr"] for row in rows}) == TRIALS
    accuracies = [row["accuracy"] for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    # Each was begun once, and one of them was continued.
    begun = Counter(re.findall(r"^trial (\d+): (?!continued|accuracy)", finished.logs, re.M))
    assert begun == {str(number): 1 for number in range(TRIALS)}


@pytest.mark.long
def test_the_trial_of_the_killed_worker_went_on_from_its_checkpoint(finished: Finished) -> None:
    number = int(finished.interrupted.name.removeprefix("trial-"))
    assert f"trial {number}: continued: " in finished.logs
    output = (finished.interrupted / "output.txt").read_text()
    assert f"continuing {finished.interrupted} at step" in output
    steps = [json.loads(line) for line in (finished.interrupted / "metrics.jsonl").read_text().splitlines()]
    numbers = [row["step"] for row in steps if row["event"] == "step"]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.long
def test_a_backbone_is_computed_once(finished: Finished, rows: list[dict[str, Any]]) -> None:
    """The training and the validation images of each of the two, whoever came first."""
    assert {row["backbone.width"] for row in rows} == {"4", "8"}
    computed = Counter((finished.folder / "computed").read_text().split())
    assert len(computed) == 4
    assert set(computed.values()) == {1}
    read = [json.loads((run / "cache.json").read_text())["0"]["why"] for run in finished.study.glob("trial-*")]
    assert read.count("there already") >= TRIALS - 4


@pytest.mark.long
def test_the_best_is_a_recipe(finished: Finished, rows: list[dict[str, Any]]) -> None:
    done = finished.again()
    assert f"best  {'study/best.py'}" in done.out
    assert f"model study/{rows[0]['run']}/final" in done.out
    assert "sure  95% interval" in done.out
    assert "next  python -m launcher study/best.py --run-dir study/best" in done.out
    planned = run_python("-m", "launcher", "plan", "study/best.py", cwd=finished.folder, env=PATHS)
    assert planned.code == 0, planned.err
    assert f"lr={rows[0]['optim.lr']!r}" in planned.out
    code = (
        "import json, sys; from launcher.recipe.loading import load_recipe; "
        "from launcher.recipe.serialization import to_json; "
        "print(to_json(load_recipe('study/best.py').recipe) == json.load(open(sys.argv[1])))"
    )
    ran = finished.study / rows[0]["run"] / "recipe.json"
    assert run_python("-c", code, str(ran), cwd=finished.folder, env=PATHS).out == "True\n"


@pytest.mark.long
def test_the_page_asks_for_nothing(finished: Finished, rows: list[dict[str, Any]]) -> None:
    text = (finished.study / "sweep.html").read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", text)
    for row in rows:
        assert row["run"] in text
    for title in ("of each trial", "by epoch", "What mattered", "Parallel coordinates"):
        assert title in text


@pytest.mark.long
def test_another_sweep_is_refused(finished: Finished, run_cli: RunCli) -> None:
    words = ("sweep", RECIPE, "optim.lr=1e-3..10 (log)", "batch_size=16", "--trials=3", "--study=study")
    done = run_cli(*words, cwd=finished.folder, env=PATHS)
    assert done.code == 2
    (line,) = done.err.splitlines()
    for difference in ("batch_size: 32 there, 16 now", "optim.lr: 1e-3..1 (log) there, 1e-3..10 (log) now"):
        assert difference in line


@pytest.mark.long
def test_half_a_row_is_cut_off_and_a_damaged_journal_is_reported(finished: Finished, tmp_path: Path) -> None:
    """A worker may be killed while it writes a row."""
    shutil.copytree(finished.folder, tmp_path / "copy")
    journal = tmp_path / "copy/study/journal.log"
    whole = journal.read_bytes()
    words = command(*RANGES, "--trials", str(TRIALS), "--study", "study")[1:]
    for added, code, said in ((b'{"op_code": 4, "wor', 0, ""), (b'{"op_code": 99}\n', 2, "is damaged (")):
        journal.write_bytes(whole + added)
        done = run_python(*words, cwd=tmp_path / "copy", env=PATHS)
        assert done.code == code, done.err
        assert said in done.err
        assert "Traceback" not in done.err
    assert journal.read_bytes() == whole + added
    journal.write_bytes(b"of the user, and no row")
    assert "holds no whole row" in run_python(*words, cwd=tmp_path / "copy", env=PATHS).err
    assert journal.read_bytes() == b"of the user, and no row"
    journal.rename(tmp_path / "elsewhere")
    journal.symlink_to(tmp_path / "elsewhere")
    assert "is a link, where the sweep keeps a file" in run_python(*words, cwd=tmp_path / "copy", env=PATHS).err


class Story:
    """Five runs: a worker is interrupted in the middle of a trial; one trial fails; the best goes on over seeds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        words = ("optim.lr=0.1,1e30", "--trials", "3", "--study", "study", "--seeds", "2")
        (folder / "hold").touch()
        worker = start(folder, *words, log="first.txt", HOLD=str(folder / "hold"))
        until(lambda: list(folder.glob("study/trial-*/checkpoints/step-000003/MANIFEST.json")))
        worker.send_signal(signal.SIGINT)
        until(lambda: list(folder.glob("study/trial-*/STOP")))
        (folder / "hold").unlink()
        self.interrupted = worker.wait(timeout=300)
        self.first = (folder / "first.txt").read_text()
        self.done = run_python(*command(*words, "--as", "json")[1:], cwd=folder, env=PATHS)
        self.rows: list[dict[str, Any]] = json.loads(self.done.out)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return Story(tmp_path_factory.mktemp("story"))


@pytest.mark.long
def test_ctrl_c_saves_and_the_same_command_continues(story: Story) -> None:
    assert story.interrupted == 130
    assert "saved and stopped; the same command continues" in story.first
    assert "Traceback" not in story.first
    assert story.done.code == 0, story.done.err
    (continued,) = re.findall(r"^trial (\d+): continued: ", story.done.err, re.M)
    output = (story.folder / f"study/trial-{int(continued):04d}/output.txt").read_text()
    assert re.search(r"at step [45] \(full_finetune, epoch 1/1\)", output)


@pytest.mark.long
def test_a_trial_that_fails_says_why_and_the_worker_goes_on(story: Story) -> None:
    failed = [row for row in story.rows if row["state"] == "failed"]
    assert failed
    for row in failed:
        assert row["optim.lr"] == "1e30"
        assert "gradient" in row["cause"]
        assert "\n" not in row["cause"]
        assert row["accuracy"] is None


@pytest.mark.long
def test_equal_settings_are_run_once(story: Story) -> None:
    trials = [row for row in story.rows if row["seed"] is None]
    good = [row for row in trials if row["state"] == "finished"]
    assert len(trials) == 3
    assert len(good) == 2
    assert good[0]["cause"] is None
    assert good[1]["cause"] == f"same settings as {good[0]['run']}"
    assert good[1]["accuracy"] == good[0]["accuracy"]
    assert not (story.folder / "study" / good[1]["run"] / "metrics.jsonl").exists()


@pytest.mark.long
def test_the_best_over_seeds_of_its_own(story: Story) -> None:
    seeds = [row for row in story.rows if row["seed"] is not None]
    assert [row["seed"] for row in sorted(seeds, key=lambda row: row["seed"])] == [1, 2]
    for row in seeds:
        recipe = json.loads((story.folder / "study" / row["run"] / "recipe.json").read_text())
        assert (recipe["seed"], recipe["optim"]["lr"]) == (row["seed"], 0.1)
    values = [row["accuracy"] for row in seeds]
    words = ("optim.lr=0.1,1e30", "--trials", "3", "--study", "study", "--seeds", "2")
    again = run_python(*command(*words)[1:], cwd=story.folder, env=PATHS)
    mean = sum(values) / 2
    reported = f"accuracy {mean:.4f} on average over 2 seeds, {min(values):.4f} to {max(values):.4f}"
    assert f"seeds {reported}" in again.out
    assert reported in (story.folder / "study/sweep.html").read_text()


@pytest.mark.slow
def test_a_pruned_trial_is_stopped_and_kept_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pruner's own judgement is Optuna's: here it condemns the first trial at its first epoch."""
    pytest.importorskip("optuna")
    from launcher.cli import main
    from launcher.tuning.sweep.study import Study

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(SUPPORT), *sys.path])
    for name, value in (PATHS | {"HOLD": str(tmp_path / "hold"), "COMPUTED": str(tmp_path / "computed")}).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "hold").touch()

    def condemned(study: Study, claim: Any) -> bool:
        (tmp_path / "hold").unlink(missing_ok=True)
        return claim.number == 0

    monkeypatch.setattr(Study, "should_prune", condemned)
    words = ("optim.lr=0.1..0.2", "--trials=2", "--study=study", "--workers=0", "--as=json")
    assert main(["sweep", RECIPE, *words]) == 0
    reported = capsys.readouterr()
    finished, pruned = json.loads(reported.out)
    assert (finished["state"], finished["run"], finished["epochs"]) == ("finished", "trial-0001", 2)
    assert (pruned["state"], pruned["run"], pruned["epochs"]) == ("pruned", "trial-0000", 1)
    assert pruned["accuracy"] is not None
    assert "trial 0: pruned after epoch 1, accuracy" in reported.err
    run_dir = tmp_path / "study/trial-0000"
    assert not (run_dir / "final").exists()
    assert not (run_dir / "STOP").exists()
    assert not (run_dir / "LEASE").exists()


MISTAKES: Mapping[str, str] = {
    "optim.lrr=1e-4..1e-2": "optim.lrr: SGD has no field 'lrr'; did you mean 'lr'?",
    "optim.lr=0..1 (log)": "optim.lr=0..1 (log): a log range begins above 0: a logarithm has no value at 0",
    "batch_size=8..": "batch_size=8..: not a range; write low..high",
    "clip_norm=3..1": "clip_norm=3..1: the low end comes first",
    "ema_decay=0.9..0.99 (logg)": "ema_decay=0.9..0.99 (logg): (logg) says nothing here; write",
    "freeze_plan.0.epochs=1.5..3": "freeze_plan.0.epochs=1.5: should be a whole number",
    "freeze_plan.7.epochs=1..3": "freeze_plan.7.epochs: no item '7'; freeze_plan has items 0 to 1",
    "cache=disk,dusk": "cache=dusk: should be 'auto', 'off', 'memory' or 'disk'; did you mean 'disk'?",
    "head.dropout=0..2": "head.dropout=2.0: input should be less than",
    "optim.momentum=0.5,0.5": "optim.momentum=0.5,0.5: 0.5 given twice",
    "backbone.norm=batch,": "backbone.norm=batch,: an empty choice",
    "seed=0..9 (step 20)": "seed=0..9 (step 20): a step is above 0, and no longer than the range",
    "nothing": "nothing: neither a range nor choices; write",
}


def test_all_mistakes_at_once(run_cli: RunCli, tmp_path: Path) -> None:
    done = run_cli("sweep", RECIPE, *MISTAKES, "--trials", "3", env=PATHS)
    assert (done.code, done.out) == (2, "")
    lines = done.err.splitlines()
    assert len(lines) == len(MISTAKES)
    for wanted in MISTAKES.values():
        assert any(line.startswith(f"error: {wanted}") for line in lines), (wanted, lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), "sweep: nothing varies; give a range"),
        (("seed=0..3",), "--trials: how many in all, over all workers?"),
        (("batch_size=8", "--seeds=2", "--trials=3"), "--trials 3: nothing varies"),
        (("seed=0,1", "--trials=3", "--seeds=2"), "seed=0,1: --seeds 2 gives the seeds; leave one out"),
        (("cache=1..2", "--trials=3"), "cache=1: should be"),
        (("compile=0..1", "--trials=3"), "compile=0..1: a range is of numbers, and this field takes none"),
    ],
)
def test_a_mistake_in_the_words(
    words: tuple[str, ...], wanted: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from launcher.cli import main

    monkeypatch.setattr(sys, "path", [str(SUPPORT), *sys.path])
    assert main(["sweep", RECIPE, *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {wanted}")


def test_a_slurm_task_that_never_gets_anywhere_is_not_requeued_for_ever(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from launcher.errors import UserError
    from launcher.tuning.sweep.sweep import _check_attempts

    task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    for advanced in (False, False, True, False, False):
        _check_attempts(tmp_path, advanced=advanced, environ=task)
    _check_attempts(tmp_path, advanced=False, environ=task | {"SLURM_ARRAY_TASK_ID": "1"})
    _check_attempts(tmp_path, advanced=False, environ={})
    with pytest.raises(UserError, match="3 starts of this task in a row ended before a step was saved"):
        _check_attempts(tmp_path, advanced=False, environ=task)
