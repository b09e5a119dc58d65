"""mixed_precision="auto": what is faster on this machine for this recipe, measured once for a run and then kept."""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from launcher.training.accelerating import recorded_precision
from launcher.training.agreement import agreed
from launcher.training.model import freeze, set_train_mode
from launcher.training.preparation import Prepared
from launcher.training.rundir import RunDir, write_whole

if TYPE_CHECKING:
    from launcher.training.progress import Screen

CANDIDATES = ("no", "bf16")
"""fp16 is not one: it needs a scaler, which may skip steps, and so is for those who ask for it."""
PASSES = 3
LARGEST_BATCH = 16
"""Images that are measured; on CPUs a larger batch takes long and tells no more."""


def with_fastest_precision(
    accelerator: Accelerator,
    prepared: Prepared,
    rundir: RunDir,
    screen: Screen,
    restart: Callable[[str], Accelerator],
) -> Accelerator:
    """An Accelerator of the precision that this run had before, or that is faster. Called by all processes."""
    found: list[str | None] = [None]
    with agreed(accelerator):
        if accelerator.is_main_process:
            found = [recorded_precision(rundir.path)]
            if found[0] is None:
                seconds = measure(prepared, accelerator.device)
                found = [min(seconds, key=seconds.__getitem__)]
                told = {name: round(value, 4) for name, value in seconds.items()}
                write_whole(
                    rundir.path / "precision.json",
                    json.dumps({"mixed_precision": found[0], "seconds_of_a_micro_step": told}),
                )
                shown = ", ".join(f"{name} {value:.3f} s" for name, value in seconds.items())
                screen.line(f"mixed_precision=auto: {found[0]} (a micro-step takes: {shown})")
    broadcast_object_list(found)
    precision = found[0]
    assert precision is not None
    if precision == accelerator.mixed_precision:
        return accelerator
    AcceleratorState._reset_state()  # not the processes' own, which stay joined
    return restart(precision)


def measure(prepared: Prepared, device: torch.device) -> dict[str, float]:
    """Seconds of a forward and backward pass in each precision, in the phase that trains most; lower is better.

    On CPUs the better one depends on the processor: on one without instructions for bf16, 16 images took ResNet-18
    3.10 s forward instead of 0.38 s.
    """
    resolved = max(prepared.phases, key=lambda phase: phase.trainable_parameters)
    model = copy.deepcopy(prepared.model).to(device).to(memory_format=torch.channels_last)
    freeze(model, resolved.lr_scales)
    set_train_mode(model, "keep")
    size, count = prepared.preprocessing.image_size, min(prepared.batching.micro_batch_size, LARGEST_BATCH)
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = images.to(device, memory_format=torch.channels_last)

    def pass_in(precision: str) -> float:
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(images)
        outputs.float().square().sum().backward()
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    seconds: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    with torch.random.fork_rng(devices=[]):
        for number in range(PASSES + 1):
            for name in CANDIDATES:
                taken = pass_in(name)
                if number:  # the first pass chooses algorithms
                    seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}
