"""What the launch fixes: which processes there are and how this one is to run. Nothing here changes what is learned."""

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
"""The process id of a sweep's worker, in the environment of its trials: a run that sees it gone saves and stops."""


def usable_cpus() -> int:
    """CPU cores that this process may run on: those of its SLURM task or cpuset, not all that the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_workers(num_cpus: int) -> int:
    """Return how many processes load data for one with so many CPU cores, unless told otherwise."""
    return max(0, min(8, num_cpus - 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run as they were started, before Accelerate has looked. See `launcher.cluster.processes`."""

    process_index: int = 0
    num_processes: int = 1
    local_process_index: int = 0
    """Among the processes on this machine."""
    num_local_processes: int = 1
    use_cpu: bool = False
    """What `Accelerator(cpu=...)` must be: without it, several processes on a machine without accelerator each become
    a lone run, with no error (accelerate 1.15)."""
    leave_with_parent: bool = False
    """The parent is a launcher, which does not pass every signal on: when it dies of one, this process is to stop."""
    num_cpus: int = dataclasses.field(default_factory=usable_cpus)
    """CPU cores for this process: its share of those that the processes on this machine may use."""

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    def check(self, accelerator: Accelerator, *, mixed_precision: str, gradient_accumulation_steps: int = 1) -> None:
        """Compare what Accelerate made with what was started and with what the recipe says.

        The environment beats `Accelerator(gradient_accumulation_steps=)`, and `Accelerator(mixed_precision=)` beats
        the environment, both without a word. Raises UserError with one line for each difference.
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
        steps = accelerator.gradient_accumulation_steps
        if steps != gradient_accumulation_steps:
            problems.append(
                f"gradient accumulation: accelerate launch asks for {plural(steps, 'step')}, but they follow from "
                "batch_size and --micro-batch; leave --gradient_accumulation_steps out of accelerate launch and its "
                "config file, and unset ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
            )
        if problems:
            raise UserError(*problems)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """What the command line says about the run, apart from the recipe."""

    run_dir: Path | None = None
    """None: named after the recipe."""
    resume: Literal["auto", "must", "never"] = "auto"
    """"auto" continues a run that is there, "must" needs one, "never" refuses one."""
    micro_batch_size: int | Literal["auto"] | None = None
    """Samples per device for each forward and backward; None: as many as the batch size gives each process, 64 at most;
    "auto": as many as fit the device's memory, and fewer at a time after a step that does not fit."""
    stop_at: float | None = None
    """Unix time in seconds by which the run must have saved and stopped."""
    num_workers: int | None = None
    """Processes that load data, for each training process; None: from the CPU cores it may use."""
    prepared: Path | None = None
    """The folder of a prepared copy of the images; None: the images as they are."""
    evaluate_final: bool = False
    """Whether the outputs of the final weights are wanted when the run has ended."""
    command: tuple[str, ...] = ()
    """The words after `python -m launcher`."""
    accepts_changed_code: bool = False
    """Whether a run may go on with own parts whose code has changed since it began."""
    starter: tuple[str, ...] = PYTHON
    """What these stand behind: `python -m launcher`, or what starts several processes."""
    world: World = dataclasses.field(default_factory=World)
