"""The scripts as text: clean, and right for any allocation. Needs no Slurm: small scripts play its commands."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from commands import ROOT

SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))

# srun plays each node's task in turn and says what it was asked; python and accelerate say what they were started with.
COMMANDS = {
    "srun": """
        echo "srun $*" >>"$CALLS"
        while [ "$1" != bash ]; do shift; done
        for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do SLURM_NODEID=$node "$@" || exit; done
    """,
    "python": """
        echo "python $*" >>"$CALLS"
        case "$*" in
          "-m launcher job begin"*) echo "$FOLDER/run" ;;
          "-m launcher job end"*) echo finished ;;
        esac
    """,
    "accelerate-launch": 'echo "accelerate-launch $*; CPU=${ACCELERATE_USE_CPU:-} CPUS=$SRUN_CPUS_PER_TASK" >>"$CALLS"',
    "scontrol": """
        case "$1 $2" in
          "show hostnames") for ((node = 1; node <= SLURM_JOB_NUM_NODES; node++)); do echo "localhost.$node"; done ;;
          "show node") echo "NodeName=$3 Arch=x86_64 NodeAddr=10.0.0.9 NodeHostName=$3" ;;
        esac
    """,
    "squeue": "echo 2030-01-01T00:00:00",
    "getent": "exit 2",
    "apptainer": """
        echo "apptainer $*" >>"$CALLS"
        shift 5
        exec "$@"
    """,
}


def play(folder: Path, *words: str, script: str = "train.sbatch", **allocation: str) -> tuple[int, list[str], str]:
    """Exit code, what the commands were called with, and the log."""
    commands = folder / "commands"
    commands.mkdir()
    for name, body in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    (folder / "run").mkdir()
    environ = {"PATH": f"{commands}:/usr/bin:/bin", "CALLS": str(folder / "calls"), "FOLDER": str(folder)}
    environ |= {"SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_ID": "1234", "SLURM_CPUS_ON_NODE": "16"} | allocation
    done = subprocess.run(
        ["bash", str(ROOT / "slurm" / script), *words], env=environ, cwd=folder, capture_output=True, text=True
    )
    calls = folder / "calls"
    return done.returncode, calls.read_text().splitlines() if calls.exists() else [], done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("gpus", [0, 1, 4, 8])
def test_any_allocation(tmp_path: Path, nodes: int, gpus: int) -> None:
    allocation = {"SLURM_JOB_NUM_NODES": str(nodes), "SLURM_JOB_NODELIST": "any", "SLURM_NTASKS_PER_NODE": "1"}
    allocation |= {"SLURM_GPUS_ON_NODE": str(gpus)} if gpus else {}
    code, calls, log = play(tmp_path, "r.py", "a=b c", **allocation)
    assert code == 0, log
    (srun,) = [call for call in calls if call.startswith("srun ")]
    assert srun.startswith(f"srun --kill-on-bad-exit=1 --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 ")
    assert srun.endswith(" r.py a=b c")
    processes = nodes * max(1, gpus)
    launched = [call for call in calls if call.startswith("accelerate-launch ")]
    if processes == 1:
        assert launched == []
        assert "python -m launcher r.py a=b c" in calls
        return
    cpu = "" if gpus else "true"
    assert launched == [
        "accelerate-launch --multi_gpu --mixed_precision no --dynamo_backend no "
        f"--num_machines {nodes} --num_processes {processes} --machine_rank {rank} "
        "--main_process_ip 10.0.0.9 --main_process_port 18639 --rdzv_backend static -m launcher r.py a=b c; "
        f"CPU={cpu} CPUS=16"
        for rank in range(nodes)
    ]


ONE = {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1"}


@pytest.mark.slow
def test_processes_on_cpus(tmp_path: Path) -> None:
    more = {"SLURM_NTASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "6"}
    _, calls, _ = play(tmp_path, "r.py", **ONE, **more)
    (launched,) = [call for call in calls if call.startswith("accelerate-launch ")]
    assert "--num_processes 4 " in launched
    assert launched.endswith("CPU=true CPUS=24")


@pytest.mark.slow
def test_a_container(tmp_path: Path) -> None:
    """Everything of ours runs inside; Slurm's commands, which are not there, do not."""
    code, calls, log = play(tmp_path, "r.py", **ONE, SLURM_GPUS_ON_NODE="2", LAUNCHER_CONTAINER="/i m.sif")
    assert code == 0, log
    inside = f"apptainer exec --nv --bind {tmp_path} /i m.sif "
    entered = [call.removeprefix(inside) for call in calls if call.startswith("apptainer")]
    assert [" ".join(call.split()[:5]) for call in entered] == [
        "python -m launcher job begin",
        "accelerate-launch --multi_gpu --mixed_precision no --dynamo_backend",
        "python -m launcher job end",
    ]
    outside = [call for call in calls if call.startswith(("python", "accelerate"))]
    assert len(outside) == 3, "each once, from within"


@pytest.mark.slow
def test_tasks_and_gpus_that_do_not_fit(tmp_path: Path) -> None:
    code, calls, log = play(tmp_path, "r.py", **ONE, SLURM_NTASKS_PER_NODE="2", SLURM_GPUS_ON_NODE="4")
    assert code == 2
    assert "error: --ntasks-per-node=2 with 4 GPUs on a node; leave it out" in log
    assert not [call for call in calls if call.startswith("srun")]


@pytest.mark.slow
def test_the_port_is_below_the_ephemeral_range_and_another_one_after_a_requeue(tmp_path: Path) -> None:
    ports = []
    for job, restarts in (("8642", "0"), ("8642", "1"), ("99999999", "3")):
        folder = tmp_path / f"{job}-{restarts}"
        folder.mkdir()
        more = {"SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": restarts}
        _, calls, _ = play(folder, "r.py", **ONE | more)
        (launched,) = [call.split() for call in calls if call.startswith("accelerate-launch ")]
        ports.append(int(launched[launched.index("--main_process_port") + 1]))
    assert len(set(ports)) == 3
    assert all(10_000 <= port < 30_100 for port in ports)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("allocation", "processes", "use_cpu"),
    [
        ({}, 1, "true"),
        ({"SLURM_NTASKS_PER_NODE": "2"}, 2, "true"),
        ({"SLURM_GPUS_ON_NODE": "1"}, 1, ""),
        ({"SLURM_GPUS_ON_NODE": "8"}, 8, ""),
    ],
)
def test_an_evaluation_on_one_node(tmp_path: Path, allocation: dict[str, str], processes: int, use_cpu: str) -> None:
    code, calls, log = play(tmp_path, "a b", "--workers=2", script="evaluate.sbatch", **ONE | allocation)
    assert code == 0, log
    srun, launched = calls
    assert srun.startswith("srun --kill-on-bad-exit=1 --ntasks=1 ")
    if processes == 1:
        assert launched == "python -m launcher evaluate a b --workers=2"
        return
    assert launched == (
        "accelerate-launch --multi_gpu --mixed_precision no --dynamo_backend no --num_machines 1 "
        f"--num_processes {processes} --main_process_port 0 -m launcher evaluate a b --workers=2; "
        f"CPU={use_cpu} CPUS=16"
    )


@pytest.mark.slow
def test_an_evaluation_that_would_leave_nodes_or_gpus_idle(tmp_path: Path) -> None:
    for name, allocation in (
        ("nodes", {**ONE, "SLURM_JOB_NUM_NODES": "2"}),
        ("tasks", {**ONE, "SLURM_NTASKS_PER_NODE": "2", "SLURM_GPUS_ON_NODE": "4"}),
    ):
        (tmp_path / name).mkdir()
        code, calls, log = play(tmp_path / name, "run", script="evaluate.sbatch", **allocation)
        assert (code, calls) == (2, [])
        assert log.startswith("error: --nodes=")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    # SC2317: it takes functions that a trap or another shell calls for unreachable.
    words = [shellcheck, "--shell=bash", "--exclude=SC2317", str(script)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ)
    assert done.stdout == ""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_slurm_reads_stands_in_every_script(script: Path) -> None:
    text = script.read_text()
    for line in ("#SBATCH --open-mode=append", "# >>> this site's lines", "# <<< this site's lines <<<"):
        assert line in text
