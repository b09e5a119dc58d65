"""Check of the processes that were started, before anything is built.

Five common ways of starting two processes give two lone runs, or one, and no error (accelerate 1.15): each is either
honoured here or refused with the command that works.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping, MutableMapping

from launcher.cluster.parent import AccelerateRequest, Parent, accelerate_request, read_parent
from launcher.cluster.slurm_ranks import is_task_of_srun, ranks_of_tasks
from launcher.errors import Problems, UserError
from launcher.text import plural
from launcher.training.launch import PARENT_VARIABLE, World, usable_cpus

# First the names that torchrun and accelerate launch set, then those of the MPI starters.
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
_LOCAL_SIZE = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")

_OF_TORCHRUN = ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE")
"""Variables set by torchrun, and by accelerate launch for several processes."""


def check_world(environ: MutableMapping[str, str] = os.environ, parent: Parent | None = None) -> World:
    """Return the processes that were started, this one among them.

    Tasks that srun started without another launcher, one for each process, get their ranks here: `environ` receives
    RANK and its companions, as Accelerate reads them.

    Raises:
        UserError: The processes could not train as one run, one line for each reason: ranks that are missing or make no
            sense, a launcher that was asked for more processes than it starts, several launchers that do not know of
            each other, or one that sets up DeepSpeed, FSDP, Megatron-LM or torch.compile.
    """
    parent = read_parent() if parent is None else parent
    problems = Problems()
    with problems.collected():
        _check_plugins(environ)
    with problems.collected():
        if is_task_of_srun(environ) and "RANK" not in environ and not parent.is_launcher:
            environ.update(ranks_of_tasks(environ))
        world = _started(environ)
        with problems.collected():
            _check_slurm(environ, world)
        with problems.collected():
            _check_request(accelerate_request(parent), world)
    problems.raise_if_any()
    leaves = parent.is_launcher or _leaves_with_worker(environ, parent)
    return dataclasses.replace(world, leave_with_parent=leaves)


def check_alone(command: str) -> World:
    """Return the world as `check_world` does, for a command that runs on one process.

    Raises:
        UserError: There are several processes, or `check_world` raises it.
    """
    world = check_world()
    if world.num_processes > 1:
        raise UserError(f"{command} runs on one process, not {world.num_processes}; start it with python -m launcher")
    return world


def _leaves_with_worker(environ: Mapping[str, str], parent: Parent) -> bool:
    """Return whether a sweep's worker has started this process as the run of a trial.

    Raises:
        UserError: The worker is gone already: another one may have begun to continue the trial.
    """
    worker = environ.get(PARENT_VARIABLE)
    if worker is None or parent.is_launcher:
        return False
    if worker != str(os.getppid()):
        raise UserError("the sweep's worker that has started this run is gone; the same sweep again continues it")
    return True


def _started(environ: MutableMapping[str, str]) -> World:
    num_processes = _number(environ, _SIZE, 1)
    rank_name = next((name for name in _RANK if name in environ), None)
    if num_processes == 1:
        # A lone process may use the machine's accelerator, Apple's included, unless told not to.
        return World(use_cpu=_flag(environ, "ACCELERATE_USE_CPU"))
    if rank_name is None:
        raise UserError(f"WORLD_SIZE={num_processes}, but RANK is not set; unset WORLD_SIZE, or start with torchrun")
    rank, local_rank = _number(environ, _RANK, 0), _number(environ, _LOCAL_RANK, 0)
    num_local = _number(environ, _LOCAL_SIZE, num_processes)
    problems = Problems()
    if not 0 <= rank < num_processes:
        problems.found.append(f"{rank_name}={rank}: must be 0 to {num_processes - 1}, for WORLD_SIZE={num_processes}")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in environ:
            problems.found.append(f"{name} is not set, so the {num_processes} processes cannot meet; use torchrun")
    num_devices = _num_devices()
    use_cpu = _flag(environ, "ACCELERATE_USE_CPU") or num_devices == 0
    if num_devices == 1 < num_local and is_task_of_srun(environ):
        environ["LOCAL_RANK"] = "0"  # --gpus-per-task: each task sees its own GPU alone, as the first
    elif not use_cpu and local_rank >= num_devices:
        problems.found.append(
            f"{num_local} processes on this machine, but it has {plural(num_devices, 'GPU')} (or shows no more: "
            f"CUDA_VISIBLE_DEVICES); start {num_devices}, or set ACCELERATE_USE_CPU=true to train on its CPUs"
        )
    problems.raise_if_any()
    return World(
        process_index=rank,
        num_processes=num_processes,
        local_process_index=local_rank,
        num_local_processes=num_local,
        use_cpu=use_cpu,
        num_cpus=cpu_count_for_workers(num_local),
    )


def _check_slurm(environ: Mapping[str, str], world: World) -> None:
    """Check that all tasks of a step of srun belong to one run.

    Raises:
        UserError: They do not, or a node has more GPUs than tasks.
    """
    if not is_task_of_srun(environ):
        return
    num_tasks = _number(environ, ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), 1)
    # torchrun and accelerate launch set how many of them have met; with ranks set by hand, each task is a process.
    together = _number(environ, ("GROUP_WORLD_SIZE",), world.num_processes)
    by_itself = "GROUP_WORLD_SIZE" not in environ
    if num_tasks > 1 and by_itself and not world.use_cpu and _num_devices() > world.num_local_processes:
        raise UserError(
            f"srun started {plural(world.num_local_processes, 'task')} on this node, which has {_num_devices()} GPUs; "
            "start one task for each GPU (--ntasks-per-node), or one accelerate launch on each node "
            "(slurm/train.sbatch)"
        )
    if num_tasks > 1 and together != num_tasks:
        lone = "each is a run of its own" if together == 1 else f"only {together} of them belong together"
        raise UserError(
            f"srun started {num_tasks} tasks with a launcher in each, and {lone}; start one python -m launcher for "
            "each GPU and no launcher (srun --ntasks-per-node <GPUs> python -m launcher ...), or one accelerate launch "
            "on each node with its own --machine_rank, as slurm/train.sbatch does, or srun --ntasks=1 for a lone run"
        )


def lone_process_note(environ: Mapping[str, str], world: World) -> str | None:
    """Return a line for a batch job with several tasks whose script starts one process without srun, else None."""
    tasks = environ.get("SLURM_NTASKS", "1")
    lone = world.num_processes == 1 and "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" not in environ
    if not lone or world.leave_with_parent or not tasks.isdecimal() or int(tasks) == 1:
        return None
    return (
        f"one process, though the job has {tasks} tasks (SLURM_NTASKS): it trains on one device; "
        "'srun python -m launcher ...' in the script starts a process for each task"
    )


def _check_request(request: AccelerateRequest | None, world: World) -> None:
    """Check that accelerate launch started what it was asked for.

    Raises:
        UserError: It started another number of processes.
    """
    if request is None or request.num_processes is None or request.num_processes <= 1:
        return
    asked, started = request.num_processes, world.num_processes
    if started == asked:
        return
    if started > 1:
        raise UserError(
            f"{request.source}: {asked} processes asked for in all, but accelerate launch started {started}, "
            "as each machine gets the same number; ask for a multiple of --num_machines"
        )
    # With a config file made for several machines, it would wait for the others.
    alone = ["--num_machines", "1", "--machine_rank", "0"] if request.num_machines > 1 else []
    command = ["accelerate", "launch", "--multi_gpu", *alone, "--num_processes", str(asked), *request.program]
    prefix = "ACCELERATE_USE_CPU=true " if request.wants_cpu else ""
    raise UserError(
        f"{request.source}: {asked} processes asked for, but without --multi_gpu accelerate launch starts one "
        f"(on CPUs, too); what works: {prefix}{shlex.join(command)}"
    )


def _check_plugins(environ: Mapping[str, str]) -> None:
    """Check for plugins that a forgotten config file may switch on (~/.cache/huggingface/accelerate).

    Raises:
        UserError: A plugin is switched on.
    """
    names = {"DEEPSPEED": "DeepSpeed", "FSDP": "FSDP", "MEGATRON_LM": "Megatron-LM"}
    on = [name for key, name in names.items() if _flag(environ, f"ACCELERATE_USE_{key}")]
    if environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in ("no", ""):
        on.append(f"torch.compile ({environ['ACCELERATE_DYNAMO_BACKEND']})")
    if on:
        raise UserError(
            f"accelerate launch asks for {', '.join(on)}, which this launcher does not use; leave it out of its "
            "options and of the config file (accelerate env shows which file it reads)"
        )


def set_threads(world: World, environ: MutableMapping[str, str] = os.environ, parent: Parent | None = None) -> int:
    """Give torch this process's share of the CPU cores, and return the number of threads.

    torchrun and accelerate launch set OMP_NUM_THREADS=1 for their children, which makes work on the CPU slow. A number
    that the user has chosen stays: by --num_cpu_threads_per_process, by OMP_NUM_THREADS in the environment in which the
    launcher itself was started (it sets its own 1 only where there is none), or by any OMP_NUM_THREADS where no
    launcher is the parent. Where the parent cannot be read, the variables that torchrun sets for its children reveal
    it, and its 1 is not taken for the user's choice: each attempt of a run computes with the same number of threads.

    Call it before `Accelerator()`, which otherwise counts the machine's cores, warns, and fails where it cannot.
    """
    import torch

    parent = read_parent() if parent is None else parent
    request = accelerate_request(parent)
    chosen = "OMP_NUM_THREADS" in (parent.environ if parent.is_launcher else environ)
    if not parent.command and any(name in environ for name in _OF_TORCHRUN):
        chosen = environ.get("OMP_NUM_THREADS", "1") != "1"
    if not chosen and not (request and request.sets_threads):
        torch.set_num_threads(world.num_cpus)
        if world.num_processes > 1:
            environ.setdefault("OMP_NUM_THREADS", str(world.num_cpus))
    return torch.get_num_threads()


def cpu_count_for_workers(num_local_processes: int) -> int:
    """Return the number of CPU cores for each of the processes on this machine, at least 1.

    They share the cores that this process may use: launchers start their children without binding them to cores.
    """
    return max(1, usable_cpus() // num_local_processes)


def _num_devices() -> int:
    """Return the number of accelerators here over which Accelerate spreads processes; Apple's does not count."""
    import torch

    if not hasattr(torch, "accelerator"):  # before torch 2.6
        return torch.cuda.device_count()
    device = torch.accelerator.current_accelerator(check_available=True)
    return 0 if device is None or device.type == "mps" else torch.accelerator.device_count()


def _number(environ: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    for name in names:
        if name in environ:
            try:
                return int(environ[name])
            except ValueError:
                raise UserError(f"{name}={environ[name]}: must be a whole number") from None
    return default


def _flag(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t")
