"""The settings that mixed_precision="auto" and memory_format="auto" stand for.

The fastest ones for this recipe on this machine are measured once per run and then kept.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator

from launcher.compat import forget_accelerate
from launcher.files import write_json
from launcher.recipe.recipe import Recipe
from launcher.training.accelerator import recorded_settings
from launcher.training.collectives import from_main
from launcher.training.feature_cache.prefix import dtype_of
from launcher.training.model import freeze, place, set_train_mode
from launcher.training.preflight import Prepared
from launcher.training.progress import Screen
from launcher.training.run_dir import RunDir

PRECISIONS = ("no", "bf16")
"""The precisions that are tried. fp16 is left to those who ask for it: it needs a scaler, which may skip steps."""
MEMORY_FORMATS = ("channels_last", "contiguous")
PASSES = 3
LARGEST_BATCH = 16
"""The most images in a measured batch; on CPUs a larger batch takes long and gives no better answer."""

Settings: TypeAlias = tuple[str, str]
"""A precision and a memory format."""


def with_fastest_settings(
    accelerator: Accelerator, prepared: Prepared, rundir: RunDir, screen: Screen, restart: Callable[[str], Accelerator]
) -> Accelerator:
    """Set the network's memory format, and return an Accelerator with the run's precision.

    Both are those recorded when the run began or, at its beginning, the fastest ones. All processes must call this.
    """
    recorded = from_main(
        accelerator, lambda: recorded_settings(rundir.path) or _measured(prepared, accelerator, rundir, screen)
    )
    precision, memory_format = _settled(prepared.recipe, recorded)
    prepared.model.contiguous = memory_format == "contiguous"
    if precision == accelerator.mixed_precision:
        return accelerator
    forget_accelerate(process_group=False)
    return restart(precision)


def _settled(recipe: Recipe, recorded: Mapping[str, str]) -> Settings:
    precision, memory_format = recipe.mixed_precision, recipe.memory_format
    return (
        recorded["mixed_precision"] if precision == "auto" else precision,
        recorded["memory_format"] if memory_format == "auto" else memory_format,
    )


def _measured(prepared: Prepared, accelerator: Accelerator, rundir: RunDir, screen: Screen) -> dict[str, Any]:
    recipe = prepared.recipe
    precisions = PRECISIONS if recipe.mixed_precision == "auto" else (recipe.mixed_precision,)
    formats = MEMORY_FORMATS if recipe.memory_format == "auto" else (recipe.memory_format,)
    seconds = measure(prepared, accelerator.device, list(itertools.product(precisions, formats)))
    precision, memory_format = min(seconds, key=seconds.__getitem__)

    def named(settings: Settings) -> str:
        return " ".join(name for name, among in zip(settings, (precisions, formats), strict=True) if len(among) > 1)

    recorded = {
        "mixed_precision": precision,
        "memory_format": memory_format,
        "seconds_of_a_micro_step": {named(settings): round(value, 4) for settings, value in seconds.items()},
    }
    write_json(rundir.path / "precision.json", recorded, indent=None)
    asked = [f"{field}=auto" for field in ("mixed_precision", "memory_format") if getattr(recipe, field) == "auto"]
    shown = ", ".join(f"{named(settings)} {value:.3f} s" for settings, value in seconds.items())
    screen.line(f"{' '.join(asked)}: {named((precision, memory_format))} (a micro-step takes: {shown})")
    return recorded


def measure(prepared: Prepared, device: torch.device, candidates: list[Settings]) -> dict[Settings, float]:
    """Return the median seconds of a forward and backward pass for each candidate, in the phase that trains most.

    On CPUs the better precision depends on the processor: on one without instructions for bf16, 16 images took
    ResNet-18 3.10 s forward instead of 0.38 s.
    """
    resolved = max(prepared.phases, key=lambda phase: phase.trainable_parameters)
    size, count = prepared.preprocessing.image_size, min(prepared.batching.micro_batch_size, LARGEST_BATCH)
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)

    def network(memory_format: str) -> torch.nn.Module:
        model = copy.deepcopy(prepared.model)
        model.contiguous = memory_format == "contiguous"
        place(model, device)
        freeze(model, resolved.lr_scales)
        set_train_mode(model, "keep")
        return model

    models = {name: network(name) for name in dict.fromkeys(name for _, name in candidates)}

    def pass_in(precision: str, memory_format: str) -> float:
        model, dtype = models[memory_format], None if precision == "no" else dtype_of(precision)
        inputs = images.to(memory_format=torch.channels_last)  # as batches arrive in training
        begin = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            outputs = model(inputs)
        outputs.float().square().sum().backward()
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    seconds: dict[Settings, list[float]] = {settings: [] for settings in candidates}
    with torch.random.fork_rng(devices=[]):
        for number in range(PASSES + 1):
            for settings in candidates:
                taken = pass_in(*settings)
                if number:  # the first pass is left out: it includes the choice of algorithms
                    seconds[settings].append(taken)
    return {settings: statistics.median(values) for settings, values in seconds.items()}
