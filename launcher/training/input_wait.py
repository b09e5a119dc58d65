"""Advice in one line for runs whose device waits for images."""

from __future__ import annotations

import math
import os

from launcher.data.prepared import need_of
from launcher.recipe.abilities import HoldsPixels
from launcher.text import plural
from launcher.training.launch import usable_cpus
from launcher.training.progress import Speed
from launcher.training.run import Run

WORTH_A_WORD = 0.15
"""Share of an epoch's training below which waiting is not reported."""
WORTH_SECONDS = 5.0
"""Seconds in an epoch below which waiting is not reported."""


def advice(
    share: float,
    *,
    num_workers: int,
    num_cpus: int,
    on_cpu: bool,
    is_prepared: bool,
    image_size: tuple[int, int] | None = None,
    short_side: int = 0,
) -> str:
    """Return advice for a run whose device waits for `share` of the time.

    `num_workers` and `num_cpus` are counted per process. `image_size` is the size of an image as stored, `short_side`
    the short side that the transforms need. On a CPU the network itself takes the cores that more workers would use.
    """
    # Workers at full load deliver in proportion to their number. With 0 workers the process itself, which also trains,
    # loads the images.
    enough = num_workers + 1 if num_workers == 0 else math.ceil(num_workers / max(1 - share, 0.05))
    workers = min(enough, num_cpus - 1)
    helpful = []
    if workers > num_workers and not on_cpu:
        idle = "the idle cores" if workers == num_cpus - 1 else "idle cores"
        helpful.append(f"--workers {workers} would use {idle} ({num_cpus} for this process, {num_workers} at work)")
    if not is_prepared:
        larger = image_size is not None and min(image_size) > short_side > 0
        size = f" {image_size[0]}x{image_size[1]} where {short_side} px are enough" if image_size and larger else ""
        helpful.append(f"'prepare' and --prepared would spare decoding{size or ' them'}")
    if not helpful:
        cores = plural(num_cpus, "core for this process is", "cores for this process are")
        helpful.append(f"{cores} too few, or the disk of the images too slow")
    return f"data: the device waited {share:.0%} of the epoch; {', '.join(helpful)}"


def report_waiting(run: Run, speed: Speed | None, seconds: float) -> bool:
    """Print advice, on the main process, if an epoch of `seconds` with this `speed` waited long for images.

    Return whether it was printed.
    """
    share = speed.waited_share if speed else 0.0
    if share < WORTH_A_WORD or share * seconds < WORTH_SECONDS or not run.accelerator.is_main_process:
        return False
    images = run.prepared.splits.train.images
    local = int(os.environ.get("LOCAL_WORLD_SIZE", run.accelerator.num_processes))
    line = advice(
        share,
        num_workers=run.train_loader.num_workers,
        num_cpus=max(1, usable_cpus() // local),
        on_cpu=run.accelerator.device.type == "cpu",
        is_prepared=isinstance(images, HoldsPixels),
        image_size=images.read(0).size,
        short_side=need_of(run.recipe, run.prepared.preprocessing).train,
    )
    run.screen.line(line, style="yellow")
    return True
