"""The file plan.json: a run as resolved for this network, data and machine, for those who read its results."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from launcher.files import write_json
from launcher.recipe.protocols import Split
from launcher.training.best import mode_of
from launcher.training.preflight import Prepared, ResolvedPhase
from launcher.training.progress import span

if TYPE_CHECKING:
    from accelerate import Accelerator


def write_plan(prepared: Prepared, accelerator: Accelerator, num_workers: int, path: Path) -> None:
    """Write plan.json for the newest start of a run, whose processes may differ from those of an earlier start."""
    content = {
        "machine": {
            "processes": accelerator.num_processes,
            "device": accelerator.device.type,
            "device_name": _device_name(accelerator.device),
            "mixed_precision": accelerator.mixed_precision,
            "data_workers": num_workers,
            "micro_batch_size": prepared.batching.micro_batch_size,
            "accumulation_steps": prepared.batching.accumulation_steps,
        },
        "data": {
            "names": list(prepared.splits.names),
            "target_kind": prepared.recipe.task.target_kind,
            "image_size": prepared.preprocessing.image_size,
            "train": _counted(prepared.splits.train, prepared),
            "val": _counted(prepared.splits.val, prepared),
            "skipped": len(prepared.splits.skipped),
        },
        "phases": [_phase(prepared, resolved) for resolved in prepared.phases],
    }
    write_json(path, content)


def _phase(prepared: Prepared, resolved: ResolvedPhase) -> dict[str, Any]:
    phase, task = resolved.phase, prepared.task
    monitor = phase.monitor or task.monitor
    return {
        "name": phase.name,
        "epochs": phase.epochs,
        "patience": phase.patience,
        "steps_per_epoch": resolved.steps_per_epoch,
        "monitor": monitor,
        "mode": mode_of(monitor, task.monitor, task.monitor_mode),
        "trains": [
            {
                "what": span(group.names, resolved.lr_scales),
                "parameters": group.parameters,
                "lr": group.lr,
                "lr_scale": group.lr_scale,
            }
            for group in resolved.groups
        ],
        "trainable_parameters": resolved.trainable_parameters,
        "total_parameters": resolved.total_parameters,
        "norm_layers": resolved.norm_layers,
        "norm_statistics": phase.norm_statistics,
        "pictures": resolved.fixed_images,
    }


def _counted(split: Split, prepared: Prepared) -> dict[str, Any]:
    """Return the number of samples, in total and for each class or label; for values their quartiles."""
    targets, kind = np.asarray(split.targets), prepared.recipe.task.target_kind
    if kind == "class":
        counts = np.bincount(targets, minlength=len(prepared.splits.names))
        return {"samples": len(split), "of_each": counts.tolist()}
    if kind == "labels":
        return {"samples": len(split), "of_each": targets.sum(0).round().astype(int).tolist()}
    quartiles = np.quantile(targets.astype(np.float64), (0, 0.25, 0.5, 0.75, 1), axis=0).T
    return {"samples": len(split), "quartiles": quartiles.tolist()}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor() or platform.processor() or platform.machine()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")
