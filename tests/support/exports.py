"""Runs that are exported, and what the exports give."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets  # noqa: F401 - sets environment variables when it is imported first; here, not in a test
import torch

import launcher
import tiny
from commands import TINY
from evaluation_runs import evaluated
from launcher import backbones, heads, optim, phases, tasks
from launcher.cli import main
from launcher.inference.evaluation import write
from runs import train

ONE = phases.linear_probe(epochs=1)


RESNET = {
    "backbone": backbones.Torchvision(name="resnet18", weights=None, image_size=40),
    "freeze_plan": ONE,
}


CHANGES: dict[str, dict[str, Any]] = {
    "own": {},
    "resnet": RESNET,
    "mlp": RESNET | {"head": heads.MLP(hidden=8)},
    "timm": {
        "backbone": backbones.Timm(name="test_resnet", weights=None, image_size=40),
        "freeze_plan": ONE,
        "mixed_precision": "bf16",
    },
    "labels": {"task": tasks.MultiLabel()},
    "values": {"task": tasks.Regression(), "optim": optim.SGD(lr=0.01)},
}


RunOf = Callable[[str], Path]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunOf:
    """Run dirs that are trained and evaluated when they are first asked for."""
    folder = tmp_path_factory.mktemp("exported")

    def run_of(name: str) -> Path:
        if not (folder / name).exists():
            train(dataclasses.replace(tiny.recipe, **CHANGES[name]), folder / name)
            write(evaluated(folder / name))
        return folder / name

    return run_of


def pictures(count: int) -> torch.Tensor:
    return torch.stack([pixels(tiny.picture(tiny.Stripes(31, 1), index)) for index in range(count)])


def pixels(image: PIL.Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image))


def exported(run_dir: Path, form: str, out: Path, *words: str) -> Path:
    assert main(["export", *TINY, str(run_dir), "--to", form, "--out", str(out), *words]) == 0
    return out


@torch.no_grad()
def outputs_of(run_dir: Path, batch: torch.Tensor, *, interpreted: bool = False) -> torch.Tensor:
    """By the model itself, of uint8 pictures (N, height, width, 3)."""
    model = launcher.load(run_dir, tiny.__file__)
    outputs = model(torch.stack([model.preprocessing(PIL.Image.fromarray(one.numpy())) for one in batch]))
    return model.interpret(outputs) if interpreted else outputs


def ready(run_dir: Path, batch: torch.Tensor) -> torch.Tensor:
    model = launcher.load(run_dir, tiny.__file__)
    return torch.stack([model.preprocessing(PIL.Image.fromarray(one.numpy())) for one in batch])
