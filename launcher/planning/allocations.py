"""The number of cluster allocations that a whole run needs, by a few real steps on this machine (`plan --time`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from launcher.errors import UserError
from launcher.planning.costs import measure
from launcher.text import duration, plural
from launcher.training.accelerator import start_accelerator
from launcher.training.launch import Launch
from launcher.training.preflight import Prepared
from launcher.training.setup import workers_of

_SLURM_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


def allocation_seconds(text: str) -> float:
    """Return the seconds of a time as Slurm takes it. Raises UserError for other text.

    The forms are minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes and
    days-hours:minutes:seconds.
    """
    match = _SLURM_TIME.fullmatch(text)
    if match is None:
        raise UserError(f"--time {text!r}: write minutes, hours:minutes:seconds, or days-hours:minutes")
    days, (first, second, third) = match["days"], (int(match[name] or 0) for name in ("first", "second", "third"))
    if days is not None:
        return 86400 * int(days) + 3600 * first + 60 * second + third
    if match["third"] is not None:
        return 3600 * first + 60 * second + third
    return 60 * first + second


def time_lines(prepared: Prepared, text: str) -> Iterable[str]:
    """Measure the time of a run, and yield the plan's lines on it. Raises UserError if an allocation is too short."""
    allocation = allocation_seconds(text)
    accelerator = start_accelerator(prepared.recipe, Launch(), Path("runs"))
    num_workers = workers_of(Launch())
    cost = measure(accelerator, prepared, num_workers)
    workers = f"{plural(num_workers, 'data worker')} per process"
    yield f"measured here, on one process ({accelerator.device.type}, {workers}), a few steps of each phase:"
    for phase in cost.phases:
        evaluations = plural(phase.evaluations, "evaluation", spec="")
        yield (
            f"  {phase.name}: {f'{duration(phase.features)} for features + ' if phase.features else ''}"
            f"{plural(phase.steps, 'step')} x {_short(phase.step)} + {evaluations} x "
            f"{_short(phase.evaluation)} = {duration(phase.seconds)}"
        )
    most = "at most " if any(phase.may_end_early for phase in cost.phases) else ""
    yield (
        f"{most}{duration(cost.seconds)} in all; each allocation loses {duration(cost.start)} to its start and "
        f"{duration(cost.reserve)} to the save before its end"
    )
    yield "not counted: exchange between processes, slower disks than here, and waiting in the queue"
    count = cost.allocations(allocation)
    yield f"--time {text}: {most}{plural(count, 'allocation')} of {duration(allocation)}"


def _short(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 60 else duration(seconds)
