"""A sweep's study on a real Slurm: the tasks of an array are its workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import ROOT, SUPPORT, run_python
from slurm_cluster import AGE, Cluster
from slurm_stories import BIN, ENVIRON

pytestmark = pytest.mark.timeout(1200)
"""Only against a hang."""

WORDS = (f"{SUPPORT}/sweep_recipe.py", "optim.lr=1e-2..1 (log)", "--trials", "4", "--study", "study", "--workers", "0")


def test_two_tasks_share_four_trials_and_one_is_requeued(slurm: Cluster, tmp_path: Path) -> None:
    path = f"{BIN}:{slurm.environ['PATH']}"
    hold, script = tmp_path / "hold", str(ROOT / "slurm/sweep.sbatch")
    hold.touch()
    environ = ENVIRON | {"PATH": path, "HOLD": str(hold), "COMPUTED": str(tmp_path / "computed")}
    environ |= {"LAUNCHER_SCRIPTS": str(ROOT / "slurm")}
    array = slurm.sbatch("--array=0-1", "--nodelist=n4", "--cpus-per-task=2", script, *WORDS, cwd=tmp_path, **environ)
    study = tmp_path / "study"
    slurm.until(lambda: len(list(study.glob("trial-*/checkpoints/step-000003/MANIFEST.json"))) == 2)
    # The warning before the time is up. Both trials stand still, so nobody else can have taken this task's.
    slurm.run("scancel", "--batch", "--signal=USR1", f"{array}_0")
    slurm.until(lambda: bool(list(study.glob("trial-*/STOP"))))
    hold.unlink()
    slurm.until(lambda: slurm.job(f"{array}_0", AGE)["Restarts"] == "1")
    slurm.run("scontrol", "update", f"JobId={array}_0", "StartTime=now", check=False)
    states = [slurm.wait(f"{array}_{task}")["JobState"] for task in (0, 1)]
    logs = "".join(file.read_text() for file in sorted(tmp_path.glob("*.log")))
    assert states == ["COMPLETED", "COMPLETED"], logs
    assert "saved and stopped; the same command continues" in logs
    done = run_python("-m", "launcher", "sweep", *WORDS, "--as=json", cwd=tmp_path, env=ENVIRON)
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    assert sorted(row["run"] for row in rows) == [f"trial-{number:04d}" for number in range(4)]
    assert {row["state"] for row in rows} == {"finished"}
    for row in rows:
        assert (study / row["run"] / "output.txt").read_text().count("done: accuracy") == 1
    assert logs.count("continued: ") == 1
