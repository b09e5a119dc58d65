"""Jobs of slurm/train.sbatch, of srun alone and of submit, on a real Slurm."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

import tiny
from commands import ROOT, SUPPORT, TINY, RunCli, run_python
from launcher.cluster.slurm import sbatch
from launcher.errors import UserError
from runs import train
from slurm_cluster import Cluster, cluster
from slurm_stories import ENVIRON, SCRIPT, Job

SPLIT = dataclasses.replace(tiny.parity, batch_size=24)
"""For 1 to 6 processes; the last batch is smaller."""
WORDS = (f"{SUPPORT}/tiny.py:parity", "batch_size=24", "--workers", "0", "--no-report")


pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]
"""Only against a hang: what a test waits for may have to wait for other jobs on the same cores."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    train(SPLIT, run_dir)
    return run_dir


@pytest.fixture(scope="module", autouse=True)
def stories_meanwhile(request: pytest.FixtureRequest) -> None:
    """Those that other files ask for begin now: most of their time they wait."""
    if any("stories" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("stories")


def furthest(one: Path, other: Path) -> float:
    ours, theirs = (load_file(path / "final/model.safetensors") for path in (one, other))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


@pytest.fixture(scope="module")
def on_nodes(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Job]:
    """One after another: they share a name."""
    folder, options = tmp_path_factory.mktemp("nodes"), ("--job-name=one", "--dependency=singleton")
    return {
        (nodes, processes): Job(
            slurm,
            folder / f"{nodes}x{processes}",
            f"--nodes={nodes}",
            f"--ntasks-per-node={processes}",
            *options,
            words=WORDS,
        )
        for nodes in (3, 2, 1)
        for processes in (2, 1)
    }


@pytest.mark.parametrize("nodes", [3, 2, 1])
@pytest.mark.parametrize("processes", [2, 1])
def test_any_number_of_nodes_and_processes(
    on_nodes: dict[tuple[int, int], Job], alone: Path, nodes: int, processes: int
) -> None:
    job = on_nodes[nodes, processes]
    assert job.end()["JobState"] == "COMPLETED", job.log
    assert f"batch 24 = {nodes * processes} process" in job.log
    assert furthest(job.run_dir, alone) < 1e-5


@pytest.mark.long
def test_nodes_with_a_network_of_their_own(alone: Path, tmp_path: Path) -> None:
    """Where 127.0.0.1, or one rank for all nodes, would not do."""
    with cluster("--nodes", "2", "--own-networks") as slurm:
        job = Job(slurm, tmp_path / "job", "--nodes=2", words=WORDS)
        assert job.end()["JobState"] == "COMPLETED", job.log
        assert "meeting at n1:" in job.log
    assert furthest(job.run_dir, alone) < 1e-5


def test_an_evaluation_after_the_training(slurm: Cluster, on_nodes: dict[tuple[int, int], Job], tmp_path: Path) -> None:
    """On two processes; and one after a training that fails, which is never begun."""
    environ = ENVIRON | {"PATH": f"{Path(sys.executable).parent}:{slurm.environ['PATH']}"}
    training = on_nodes[1, 1]
    evaluation = (str(SCRIPT.with_name("evaluate.sbatch")), str(training.run_dir), "--workers=0", *TINY)

    options = (f"--dependency=afterok:{training.id}", "--ntasks-per-node=2", "--output=good.log")
    after = slurm.sbatch(*options, *evaluation, cwd=tmp_path, **environ)
    bad = slurm.sbatch("--output=bad.log", str(SCRIPT), "nothing.py", cwd=tmp_path, **environ)
    never = slurm.sbatch(f"--dependency=afterok:{bad}", *evaluation, cwd=tmp_path, **environ)

    assert slurm.wait(bad)["JobState"] == "FAILED"
    assert slurm.wait(never)["JobState"] == "CANCELLED"
    state, log = slurm.wait(after), (tmp_path / "good.log").read_text()
    assert state["JobState"] == "COMPLETED", log
    assert state["StartTime"] >= slurm.job(training.id)["EndTime"]
    found, final = (
        json.loads((training.run_dir / name).read_text()) for name in ("evaluation.json", "final/metrics.json")
    )
    assert (found["samples"], found["processes"]) == (31, 2)
    assert found["metrics"] == pytest.approx(final, abs=1e-6)
    assert ["accuracy", f"{found['metrics']['accuracy']:.4f}"] in [line.split()[:2] for line in log.splitlines()]


def test_one_task_for_each_process_by_srun_alone(slurm: Cluster, alone: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "launcher", *WORDS, "--run-dir", str(tmp_path / "run")]
    done = slurm.run("srun", "--nodes=2", "--ntasks-per-node=2", *words, cwd=tmp_path, **ENVIRON)  # type: ignore[arg-type]
    assert "batch 24 = 4 processes" in done.stdout
    assert furthest(tmp_path / "run", alone) < 1e-5


def test_a_launcher_in_each_task_is_refused(slurm: Cluster, tmp_path: Path) -> None:
    accelerate = [str(Path(sys.executable).parent / "accelerate"), "launch", "--mixed_precision", "no"]
    accelerate += ["--dynamo_backend", "no", "--num_machines", "1", "--num_processes", "1", "-m", "launcher"]
    done = slurm.run("srun", "--ntasks=2", *accelerate, *WORDS, cwd=tmp_path, check=False, **ENVIRON)
    assert done.returncode != 0
    assert "srun started 2 tasks with a launcher in each" in done.stderr
    assert not (tmp_path / "runs").exists()


STRANGE = "a b  'c' \"d\" $(touch x) `touch x` ; touch x & \\ * \n 新 é %j"


def test_words_arrive_as_typed(slurm: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "a b 'c' $(touch x) 新"
    words = (f"{SUPPORT}/free_text.py", f"data.title={STRANGE}", "--workers", "0", "--no-report")
    job = Job(slurm, folder, words=words)
    assert job.end()["JobState"] == "COMPLETED", job.log
    recipe = json.loads((folder / "run/recipe.json").read_text())
    assert recipe["data"]["title"] == STRANGE
    assert not list(tmp_path.rglob("x"))


def test_jobs_on_the_same_node_do_not_meet(slurm: Cluster, tmp_path: Path) -> None:
    """Two with run dirs of their own, each of two processes; and a third that wants the first one's."""
    options = ("--nodelist=n1", "--ntasks-per-node=2")
    first, second = (Job(slurm, tmp_path / name, *options) for name in ("first", "second"))
    first.at_step(1)
    hold = first.folder / "hold"
    hold.touch()  # at work until the third has been there
    third = slurm.sbatch(
        "--nodelist=n2",
        "--output=third.log",
        str(SCRIPT),
        str(SUPPORT / "slow_steps.py"),
        "--run-dir",
        str(first.run_dir),
        cwd=tmp_path,
        **ENVIRON | {"PATH": f"{Path(sys.executable).parent}:{slurm.environ['PATH']}"},
    )
    assert slurm.wait(third)["JobState"] == "FAILED"
    assert "another run is at work in it (process " in (tmp_path / "third.log").read_text()
    hold.unlink()
    for job in (first, second):
        assert job.end()["JobState"] == "COMPLETED", job.log
    assert (first.run_dir / "metrics.jsonl").read_bytes() == (second.run_dir / "metrics.jsonl").read_bytes()


def submit(slurm: Cluster, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{slurm.environ['PATH']}"
    command = [sys.executable, "-m", "launcher", "submit", *words]
    return slurm.run(*command, cwd=folder, check=False, **ENVIRON | {"PATH": path, "COLUMNS": "200"})


RECIPE = """import dataclasses
import tiny
from launcher import Recipe

recipe = dataclasses.replace(tiny.parity, seed={seed}, freeze_plan=tiny.parity.freeze_plan[1:])
"""


def test_what_was_submitted_runs_whatever_changes_meanwhile(slurm: Cluster, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text(RECIPE.format(seed=7))
    done = submit(slurm, tmp_path, "mine.py", "--workers=0", "--begin=now+1hour")
    assert done.returncode == 0, done.stderr
    job = done.stdout.split(";")[0].removeprefix("job ")
    reported = submit_like(slurm, tmp_path, "status", "runs/mine")
    assert reported.startswith("runs/mine: waiting")
    recipe.write_text(RECIPE.format(seed=8))
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    assert slurm.wait(job)["JobState"] == "COMPLETED", submit_like(slurm, tmp_path, "logs", job)
    assert json.loads((tmp_path / "runs/mine/recipe.json").read_text())["seed"] == 7
    reported = submit_like(slurm, tmp_path, "status", job)
    assert reported.splitlines()[:2] == [f"{tmp_path}/runs/mine: finished", "step 6 of 6 saved, 0 restarts"]
    assert "done: accuracy" in submit_like(slurm, tmp_path, "logs", "runs/mine")


def submit_like(slurm: Cluster, folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "launcher", *words]
    return slurm.run(*command, cwd=folder, **ENVIRON | {"COLUMNS": "200"}).stdout  # type: ignore[arg-type]


def test_a_mistake_is_reported_and_nothing_is_queued(slurm: Cluster, tmp_path: Path) -> None:
    before = slurm.run("squeue", "--noheader", "--states=all", "--format=%i").stdout
    done = submit(slurm, tmp_path, f"{SUPPORT}/tiny.py", "optim.lrr=1", "--nodes=2", "--time=soon", "mem")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: --time 'soon': write minutes, hours:minutes:seconds, or days-hours:minutes",
        "error: 'mem': neither name=value nor an option; options of sbatch are written with =: --mem=64G",
        "error: optim.lrr: SGD has no field 'lrr'; did you mean 'lr'?",
    ]
    done = submit(slurm, tmp_path, f"{SUPPORT}/tiny.py", "--nodes=3")
    assert (done.returncode, "batch_size" in done.stderr) == (2, True)
    done = submit(slurm, tmp_path, f"{SUPPORT}/tiny.py", "--partition=nowhere")
    hint, error = done.stderr.splitlines()
    assert hint.startswith("no GPUs asked for: ")
    assert error.startswith("error: sbatch: ")
    assert "nowhere" in error or "partition" in error
    assert not (tmp_path / "runs/tiny").exists()
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / "MANIFEST.json").write_text('{"format": 1, "assets": {}}')
    done = submit(slurm, tmp_path, f"{SUPPORT}/remote_assets.py:both", f"--assets={assets}")
    bring = f"bring it, where there is network: python -m launcher fetch {SUPPORT}/remote_assets.py:both"
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: backbone.weights='DEFAULT': ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1 is not among the assets in "
        f"{assets}; {bring} --to {assets}",
        f"error: data.path='someone/pets': data set someone/pets is not among the assets in {assets}; "
        f"{bring} --to {assets}",
    ]
    assert not (tmp_path / "runs/needing").exists()
    assert slurm.run("squeue", "--noheader", "--states=all", "--format=%i").stdout == before


def test_a_chain_where_slurm_does_not_requeue(slurm: Cluster, tmp_path: Path) -> None:
    words = (f"{SUPPORT}/slow_steps.py:parity", "--run-dir=run", "--chain=3", "--workers=0", "--no-report")
    done = submit(slurm, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.split(";")[0].removeprefix("job ").split(" -> ")
    slurm.until(lambda: (tmp_path / "steps").exists() and (tmp_path / "steps").stat().st_size >= 4)
    slurm.run("scancel", "--batch", "--signal=USR1", first)
    assert slurm.wait(first)["ExitCode"] == "85:0"
    assert slurm.wait(second)["JobState"] == "COMPLETED"
    assert slurm.wait(third)["JobState"] == "COMPLETED"
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert "is finished already" in logs
    ends = [json.loads(line) for line in (tmp_path / "run/LIVES.jsonl").read_text().splitlines()]
    assert [row["cause"] for row in ends if row["event"] == "end"] == ["time limit", "finished", "finished"]


def test_cancel_saves_first(slurm: Cluster, tmp_path: Path) -> None:
    job = Job(slurm, tmp_path, SECONDS_OF_A_STEP="1")
    job.at_step(1)
    reported = submit_like(slurm, tmp_path, "cancel", str(job.run_dir))
    assert "saved; the same command continues" in reported
    assert job.end()["JobState"] == "FAILED"
    assert json.loads((job.run_dir / "STOPPED.json").read_text())["reason"] == "asked to stop"


def test_a_sweep_of_six_two_at_a_time_with_one_task_preempted(slurm: Cluster, tmp_path: Path) -> None:
    words = (
        f"{SUPPORT}/slow_steps.py:parity",
        "optim.lr=0.03,0.1,0.3",
        "seed=0,1",
        "--run-dir=sweep",
        "--workers=0",
        "--no-report",
    )
    done = submit(slurm, tmp_path, *words, "--array=%2", "--partition=low", "--nodelist=n3", "--cpus-per-task=2")
    assert done.returncode == 0, done.stderr
    array = done.stdout.split(";")[0].removeprefix("job ")
    steps = tmp_path / "sweep/steps"
    slurm.until(lambda: steps.exists() and steps.stat().st_size >= 6)
    slurm.sbatch("--partition=high", "--nodelist=n3", "--cpus-per-task=2", "--wrap=sleep 1", cwd=tmp_path)
    for number in range(6):
        assert slurm.wait(f"{array}_{number}")["JobState"] == "COMPLETED", number
    restarts = [int(slurm.job(f"{array}_{number}")["Restarts"]) for number in range(6)]
    assert sorted(restarts) == [0, 0, 0, 0, 0, 1]
    rows = json.loads(submit_like(slurm, tmp_path, "compare", *(f"sweep/{n}" for n in range(6)), "--as=json"))
    assert {(row["run"], row["optim.lr"], row["seed"]) for row in rows} == {
        (f"sweep/{number}", (0.03, 0.1, 0.3)[number // 2], number % 2) for number in range(6)
    }
    assert {row["state"] for row in rows} == {"finished"}
    accuracies = [row["accuracy"] for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    for row in rows:
        there = json.loads((tmp_path / row["run"] / "final/metrics.json").read_text())
        assert there["accuracy"] == row["accuracy"]


def test_submit_where_no_controller_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("sbatch") is None or Path("/etc/slurm/slurm.conf").exists():
        pytest.skip("needs sbatch on a machine without a cluster")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    with pytest.raises(UserError, match=r"^sbatch: is here, but finds no Slurm controller \(slurmctld\): .*--dry-run"):
        sbatch([], [str(SCRIPT)], os.environ)


def test_submit_without_slurm(run_cli: RunCli, tmp_path: Path) -> None:
    words = (f"{SUPPORT}/tiny.py", "seed=1", "--nodes=2", "--gpus-per-node=4", "--mem=64G", "--dry-run")
    environ = {"PYTHONPATH": f"{ROOT}:{SUPPORT}", "PATH": str(tmp_path)}
    done = run_cli("submit", *words, env=environ)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].startswith(
        "sbatch --parsable --job-name=tiny --nodes=2 --gpus-per-node=4 --mem=64G "
    )
    assert SCRIPT.read_text() in done.out
    assert "trains on CPUs" not in done.err
    done = run_cli("submit", *words[:3], "--dry-run", env=environ)
    assert done.err == "no GPUs asked for: trains on CPUs (--gpus-per-node G asks for them)\n"
    done = run_cli("submit", *words, f"--assets={tmp_path}", env=environ)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: --assets {tmp_path}: has no MANIFEST.json; wanted: a folder that ")
    done = run_python("-m", "launcher", "submit", *words[:-1], cwd=tmp_path, env=environ)
    assert done.code == 2
    assert done.err == (
        "error: sbatch: not found, so Slurm is not installed here; --dry-run shows what would be submitted\n"
    )


GROUP_KILLED = """
import os, signal, subprocess, sys
from slurm_cluster import cluster

with cluster("--nodes", "1") as slurm:
    slurm.sbatch("--wrap", "setsid sleep 987654 & sleep 987654", cwd="/")
    slurm.until(lambda: len(slurm.processes("n1")) >= 3)
    print(slurm.folder, flush=True)
    os.killpg(0, int(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_cluster_outlives_its_tests(slurm: Cluster, number: signal.Signals) -> None:
    """Nor does a job that has left its session."""
    words = [sys.executable, "-c", GROUP_KILLED, str(int(number))]
    environ = slurm.environ | {"PYTHONPATH": str(SUPPORT)}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, start_new_session=True, check=False)
    assert done.returncode == -number, done.stderr
    folder = Path(done.stdout.strip())
    slurm.until(lambda: not folder.exists())
    left = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    assert not [words for words in left if words and ("987654" in words or str(folder) in " ".join(words))]
