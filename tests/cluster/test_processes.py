"""Every way of starting processes gives one run of all of them, or is refused with the command that works."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import launcher.cluster.processes as world_module
from commands import ROOT, SUPPORT
from launcher.cluster.parent import Parent, accelerate_request
from launcher.cluster.processes import check_world, cpu_count_for_workers, set_threads
from launcher.errors import UserError
from launcher.training.attempt import attempt_number
from launcher.training.launch import World

BIN = Path(sys.executable).parent
RANKS = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
on_cpus = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens on a machine without GPUs")


def problems(environ: Mapping[str, str], *words: str) -> tuple[str, ...]:
    with pytest.raises(UserError) as raised:
        check_world(dict(environ), Parent(words))
    return raised.value.problems


# --- told from the environment ---


def test_a_lone_process() -> None:
    world = check_world({}, Parent(("bash",)))
    assert (world.num_processes, world.process_index, world.use_cpu) == (1, 0, False)
    assert check_world({"ACCELERATE_USE_CPU": "true"}, Parent()).use_cpu


@on_cpus
def test_ranks_of_torchrun_and_of_mpi() -> None:
    world = check_world(RANKS | MEETING, Parent())
    assert (world.num_processes, world.process_index, world.local_process_index, world.use_cpu) == (2, 1, 1, True)
    assert not world.is_main_process
    mpi = {"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"} | MEETING
    world = check_world(mpi, Parent())
    assert (world.num_processes, world.process_index, world.num_local_processes) == (4, 3, 2)


def test_ranks_that_make_no_sense() -> None:
    assert problems({"WORLD_SIZE": "2"}) == (
        "WORLD_SIZE=2, but RANK is not set; unset WORLD_SIZE, or start with torchrun",
    )
    assert problems({"WORLD_SIZE": "two", "RANK": "0"}) == ("WORLD_SIZE=two: must be a whole number",)
    lines = problems({**RANKS, "RANK": "2", "MASTER_PORT": "1"})
    assert lines == (
        "RANK=2: must be 0 to 1, for WORLD_SIZE=2",
        "MASTER_ADDR is not set, so the 2 processes cannot meet; use torchrun",
    )


def test_what_a_forgotten_config_file_switches_on() -> None:
    (line,) = problems({"ACCELERATE_USE_FSDP": "true", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"})
    assert line.startswith("accelerate launch asks for FSDP, torch.compile (INDUCTOR), which")
    assert check_world({"ACCELERATE_USE_FSDP": "false", "ACCELERATE_DYNAMO_BACKEND": "NO"}, Parent()).num_processes == 1


STEP = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}


def test_tasks_of_srun_that_do_not_know_of_each_other() -> None:
    # One launcher for each task, which has started two processes and met no other launcher.
    (line,) = problems(STEP | RANKS | MEETING | {"GROUP_WORLD_SIZE": "1"})
    assert line.startswith("srun started 2 tasks with a launcher in each, and each is a run of its own")
    (line,) = problems(STEP, "python3", "-m", "torch.distributed.run", "x.py")
    assert line.startswith("srun started 2 tasks with a launcher in each, and each is a run of its own")
    (line,) = problems(STEP)
    assert line.startswith("srun started 2 tasks, but SLURM_LOCALID is not set")


TASK = STEP | {
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_JOB_ID": "11",
}


@on_cpus
def test_tasks_that_srun_started_by_itself_get_their_ranks() -> None:
    environ = dict(TASK)
    world = check_world(environ, Parent(("slurmstepd: [11.0]",)))
    assert (world.num_processes, world.process_index, world.local_process_index, world.use_cpu) == (2, 1, 1, True)
    given = {name: environ[name] for name in (*RANKS, *MEETING)}
    assert given == RANKS | {"MASTER_ADDR": "localhost", "MASTER_PORT": "10077"}


def test_numbers_of_slurm_that_are_none() -> None:
    (line,) = problems(TASK | {"SLURM_JOB_ID": "x"}, "slurmstepd: [11.0]")
    assert line == "SLURM_JOB_ID=x: must be a whole number, as Slurm sets it; unset it, or set MASTER_PORT"
    assert attempt_number({}) == attempt_number({"SLURM_RESTART_COUNT": ""}) == 1
    assert attempt_number({"SLURM_RESTART_COUNT": "2"}) == 3
    for count in ("x", "-1", "1.0"):
        with pytest.raises(UserError, match=f"SLURM_RESTART_COUNT={count}: must be a whole number, as Slurm sets it"):
            attempt_number({"SLURM_RESTART_COUNT": count})


def test_a_task_that_sees_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "_num_devices", lambda: 1)
    environ = dict(TASK)
    world = check_world(environ, Parent())
    assert (world.local_process_index, world.use_cpu, environ["LOCAL_RANK"]) == (1, False, "0")


def test_fewer_tasks_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "_num_devices", lambda: 4)
    (line,) = problems(TASK)
    assert line.startswith("srun started 2 tasks on this node, which has 4 GPUs; start one task for each GPU")


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param(STEP | RANKS | MEETING, id="ranks-by-hand"),
        pytest.param(STEP | RANKS | MEETING | {"WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"}, id="launcher-on-each-node"),
        pytest.param(STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, id="one-task-of-a-larger-job"),
        pytest.param(STEP | {"SLURM_STEP_ID": str(2**32 - 6)}, id="interactive-shell"),
        pytest.param(STEP | {"SLURM_STEP_ID": str(2**32 - 5)}, id="batch-script"),
        pytest.param(STEP | {"SLURM_PTY_PORT": "4000"}, id="shell-of-srun-pty"),
        pytest.param({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, id="no-step"),
    ],
)
@on_cpus
def test_tasks_of_srun_that_are_in_order(environ: dict[str, str]) -> None:
    assert check_world(dict(environ), Parent()).num_processes == int(environ.get("WORLD_SIZE", "1"))


# --- told from the parent's command line ---


@pytest.mark.parametrize(
    "start",
    [
        ("/usr/bin/python", "/venv/bin/accelerate", "launch"),
        ("/venv/bin/accelerate-launch",),
        ("python3", "-m", "accelerate.commands.launch"),
        ("python3", "-m", "accelerate.commands.accelerate_cli", "launch"),
    ],
)
@pytest.mark.parametrize("option", [("--num_processes", "3"), ("--num_processes=3",), ("--num-processes", "3")])
def test_reads_what_accelerate_launch_was_asked_for(start: tuple[str, ...], option: tuple[str, ...]) -> None:
    request = accelerate_request(Parent((*start, *option, "-m", "launcher", "x.py", "--num_processes", "7")))
    assert request is not None
    assert (request.num_processes, request.source, request.wants_cpu) == (3, "--num_processes", False)
    assert request.program == ("-m", "launcher", "x.py", "--num_processes", "7")


def test_other_parents_ask_for_nothing() -> None:
    assert accelerate_request(Parent()) is None
    assert accelerate_request(Parent(("vim", "accelerate"))) is None
    assert accelerate_request(Parent(("python", "x.py", "--num_processes", "2"))) is None


def test_a_number_that_the_machines_cannot_share() -> None:
    words = ("accelerate", "launch", "--num_machines", "2", "--num_processes", "3", "x.py")
    (line,) = problems(RANKS | MEETING, *words)
    assert line.startswith("--num_processes: 3 processes asked for in all, but accelerate launch started 2")


# --- what Accelerate makes of it ---


@on_cpus
def test_accelerate_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator = Accelerator(cpu=True, mixed_precision="no", gradient_accumulation_steps=1)
    with pytest.raises(UserError) as raised:
        World(num_processes=2).check(accelerator, mixed_precision="no")
    starts = [problem.split(";")[0] for problem in raised.value.problems]
    assert starts == [
        "processes: 2 were started, but Accelerate sees 1",
        "mixed_precision: 'no' in the recipe, but 'bf16' in accelerate launch --mixed_precision or its config file",
        "gradient accumulation: accelerate launch asks for 7 steps, but they follow from batch_size and --micro-batch",
    ]


# --- threads ---


def test_threads_are_the_share_of_the_cores_unless_chosen() -> None:
    before = torch.get_num_threads()
    try:
        launcher = ("python", "/venv/bin/torchrun")
        assert set_threads(World(num_cpus=3), {"OMP_NUM_THREADS": "1"}, Parent(launcher)) == 3
        torch.set_num_threads(1)
        assert set_threads(World(num_cpus=3), {"OMP_NUM_THREADS": "1"}, Parent(launcher, {"OMP_NUM_THREADS": "1"})) == 1
        assert set_threads(World(num_cpus=3), {"OMP_NUM_THREADS": "1"}, Parent(("bash",))) == 1
        for of_torchrun in ({"TORCHELASTIC_RUN_ID": "none"}, {"LOCAL_WORLD_SIZE": "2"}):
            torch.set_num_threads(1)
            assert set_threads(World(num_cpus=3), {"OMP_NUM_THREADS": "1"} | of_torchrun, Parent()) == 3
            torch.set_num_threads(2)
            assert set_threads(World(num_cpus=3), {"OMP_NUM_THREADS": "2"} | of_torchrun, Parent()) == 2
        torch.set_num_threads(1)
        assert set_threads(World(num_cpus=3), {"OMP_NUM_THREADS": "1"}, Parent()) == 1
        words = ("accelerate", "launch", "--num_cpu_threads_per_process", "1", "x.py")
        assert set_threads(World(num_cpus=3), {"OMP_NUM_THREADS": "1"}, Parent(words)) == 1
        environ: dict[str, str] = {}
        assert set_threads(World(num_cpus=2, num_processes=2), environ, Parent(("bash",))) == 2
        assert environ == {"OMP_NUM_THREADS": "2"}
    finally:
        torch.set_num_threads(before)


def test_a_process_has_at_least_one_core() -> None:
    assert cpu_count_for_workers(10_000) == 1
    assert cpu_count_for_workers(1) == World().num_cpus >= 1


# --- real starts ---


def start(*words: str, **environ: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    clean |= {"PYTHONPATH": str(ROOT), "HF_HOME": "/nonexistent"} | environ
    command = [str(BIN / words[0]), *words[1:], str(SUPPORT / "show_world.py"), "recipe.py"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean)


def lines_of(*started: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """The JSON lines of all processes, sorted by process."""
    lines = []
    for process in started:
        out, err = process.communicate()
        assert process.returncode == 0, err
        lines += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return sorted(lines, key=lambda line: line.get("index", 0))


def assert_one_run_of_two(lines: list[dict[str, Any]]) -> None:
    assert [line.get("index") for line in lines] == [0, 1], lines
    for line in lines:
        assert (line["processes"], line["type"], line["same_index"]) == (2, "MULTI_CPU", True)
        assert line["threads"] == line["cpus"]


TORCHRUN = ("torchrun", "--standalone", "--nproc_per_node", "2")
MULTI = (
    "accelerate",
    "launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--main_process_port",
    "0",
)


@pytest.mark.long
@on_cpus
@pytest.mark.parametrize("use_cpu", [{}, {"ACCELERATE_USE_CPU": "true"}], ids=["as-it-is", "told-cpu"])
@pytest.mark.parametrize("command", [TORCHRUN, MULTI], ids=["torchrun", "accelerate"])
def test_two_processes_of_a_launcher_are_one_run(command: tuple[str, ...], use_cpu: dict[str, str]) -> None:
    assert_one_run_of_two(lines_of(start(*command, **use_cpu)))


@pytest.mark.long
@on_cpus
def test_two_machines_are_one_run() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ("accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "2")
    meeting = ("--main_process_ip", "127.0.0.1", "--main_process_port", str(port))
    assert_one_run_of_two(lines_of(*[start(*command, "--machine_rank", rank, *meeting) for rank in ("0", "1")]))


@pytest.mark.long
@on_cpus
@pytest.mark.parametrize(
    ("options", "source", "prefix", "machines"),
    [
        (("--cpu", "--num_processes", "2"), "--num_processes", "ACCELERATE_USE_CPU=true ", 1),
        (("--num_processes", "2"), "--num_processes", "", 1),
        (("--config_file", "two.yaml"), "num_processes in two.yaml", "ACCELERATE_USE_CPU=true ", 1),
        (("--config_file", "two.yaml"), "num_processes in two.yaml", "ACCELERATE_USE_CPU=true ", 2),
    ],
)
def test_one_process_instead_of_two_is_refused(
    options: tuple[str, ...], source: str, prefix: str, machines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a config file that was made for two machines, the command that is told must not wait for the other."""
    monkeypatch.chdir(tmp_path)
    Path("two.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n"
        f"mixed_precision: 'no'\nnum_machines: {machines}\nmachine_rank: 0\n"
        "main_process_ip: 127.0.0.1\nmain_process_port: 29577\n"
    )
    alone = "" if machines == 1 else "--num_machines 1 --machine_rank 0 "
    (line,) = lines_of(start("accelerate", "launch", *options))
    script = SUPPORT / "show_world.py"
    assert line["refused"] == [
        f"{source}: 2 processes asked for, but without --multi_gpu accelerate launch starts one (on CPUs, too); "
        f"what works: {prefix}accelerate launch --multi_gpu {alone}--num_processes 2 {script} recipe.py"
    ]
