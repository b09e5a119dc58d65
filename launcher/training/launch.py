"""The settings of a launch: which processes there are and how this one runs. None of them changes what is learned."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launcher.errors import UserError
from launcher.text import plural
from launcher.training.command import PYTHON

if TYPE_CHECKING:
    from accelerate import Accelerator

PARENT_VARIABLE = "LAUNCHER_LEAVES_WITH"
"""Environment variable of trials with the process id of their sweep's worker; a run stops when that process is gone.

The run saves before it stops.
"""


def usable_cpus() -> int:
    """Return the number of CPU cores this process may run on: those of its Slurm task or cpuset, not of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_workers(num_cpus: int) -> int:
    """Return the default number of data workers for a process with so many CPU cores."""
    return max(0, min(8, num_cpus - 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run as they were started, before Accelerate is involved. See `launcher.cluster.processes`."""

    process_index: int = 0
    num_processes: int = 1
    local_process_index: int = 0
    """Index among the processes on this machine."""
    num_local_processes: int = 1
    use_cpu: bool = False
    """The required value of `Accelerator(cpu=...)`. Without it, several processes on a machine without accelerator each
    become a separate run, with no error (accelerate 1.15)."""
    leave_with_parent: bool = False
    """True if this process is to stop when its parent dies, such as a launcher, which does not pass on every signal."""
    num_cpus: int = dataclasses.field(default_factory=usable_cpus)
    """CPU cores for this process: its share of those that the run's processes on this machine may use."""

    @property
    def is_main_process(self) -> bool:
        """Return whether this is process 0."""
        return self.process_index == 0

    def check(self, accelerator: Accelerator, *, mixed_precision: str) -> None:
        """Check that Accelerate's settings agree with the processes that were started and with the recipe.

        The environment silently overrides `Accelerator(gradient_accumulation_steps=)`, and
        `Accelerator(mixed_precision=)` silently overrides the environment. Raise UserError with one line for each
        difference.
        """
        problems = []
        if accelerator.num_processes != self.num_processes:
            problems.append(
                f"processes: {self.num_processes} were started, but Accelerate sees {accelerator.num_processes}; use "
                "torchrun or accelerate launch --multi_gpu, which set RANK, LOCAL_RANK, WORLD_SIZE and MASTER_ADDR"
            )
        asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if accelerator.mixed_precision != mixed_precision or asked not in ("no", mixed_precision):
            other = asked if asked != mixed_precision else accelerator.mixed_precision
            problems.append(
                f"mixed_precision: {mixed_precision!r} in the recipe, but {other!r} in accelerate launch "
                f"--mixed_precision or its config file; leave it out there, or override mixed_precision={other}"
            )
        if (steps := accelerator.gradient_accumulation_steps) != 1:
            problems.append(
                f"gradient accumulation: accelerate launch asks for {plural(steps, 'step')}, but they follow from "
                "batch_size and --micro-batch; leave --gradient_accumulation_steps out of accelerate launch and its "
                "config file, and unset ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
            )
        if problems:
            raise UserError(*problems)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """The settings of a run from the command line, apart from the recipe."""

    run_dir: Path | None = None
    """The run dir; None for one named after the recipe."""
    resume: Literal["auto", "must", "never"] = "auto"
    """"auto" continues a run that is there, "must" requires one, "never" refuses one."""
    micro_batch_size: int | Literal["auto"] | None = None
    """Samples per device in each forward and backward pass. None takes as many as the batch size gives each process, 64
    at most; "auto" as many as fit the device's memory, and fewer at a time after a step that does not fit."""
    stop_at: float | None = None
    """Unix time in seconds by which the run must have saved and stopped."""
    num_workers: int | None = None
    """Data workers of each training process; None derives them from the CPU cores that the process may use."""
    prepared: Path | None = None
    """The folder of a prepared copy of the images; None for the original images."""
    evaluate_final: bool = False
    """True if the outputs of the final weights are wanted when the run has ended."""
    command: tuple[str, ...] = ()
    """The words after the starter."""
    accepts_changed_code: bool = False
    """True if a run may go on with the user's own parts whose code has changed since it began."""
    starter: tuple[str, ...] = PYTHON
    """The words that start the program: `python -m launcher`, or a program that starts several processes."""
    world: World = dataclasses.field(default_factory=World)
