"""Runs on one or several processes, and how far their weights are apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import tiny
from commands import ROOT
from launcher import Recipe
from launcher.recipe.loading import LoadedRecipe
from launcher.training import loop
from launcher.training.launch import Launch, World

BIN = Path(sys.executable).parent


STARTS = {
    "torchrun": ["torchrun", "--standalone", "--nproc_per_node", "2"],
    "accelerate": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
}


def start(way: str, *arguments: str, recipe: str = "tests/support/tiny.py") -> subprocess.CompletedProcess[str]:
    more = (
        ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"] if way == "accelerate" else []
    )
    command = [str(BIN / STARTS[way][0]), *STARTS[way][1:], *more, "-m", "launcher", recipe, *arguments]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "RANK", "WORLD_SIZE"))}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


def alone(recipe: Recipe, run_dir: Path, **launch: Any) -> None:
    world = World(use_cpu=True, num_cpus=1)
    loop.run(LoadedRecipe(recipe, "tiny", Path(tiny.__file__)), Launch(run_dir=run_dir, world=world, **launch))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "final/model.safetensors")


def furthest(one: Path, other: Path) -> float:
    """Largest difference of any weight or buffer."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


def steps(run_dir: Path) -> list[tuple[int, float, int]]:
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["lr"], row["samples"]) for row in rows if row["event"] == "step"]
