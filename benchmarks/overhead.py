"""What this launcher's step costs above the bare one: forward, backward and update on tensors in memory.

    python benchmarks/overhead.py --root hymenoptera_data [--model resnet18] [--epochs 4] [--bf16]

Trains everything on ants and bees. Each step is taken twice, one after the other, in turns of who goes first: by the
launcher (gradient checks, seeds, schedule, metrics), and by five lines of PyTorch on a copy of the network, both on the
same batch, which is on the device already. Prints the median of the ratios.

Seen on 2 cores of an AMD EPYC, 30 pairs of ResNet-18 in bfloat16: 0.995 (the middle half from 0.962 to 1.054).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from launcher.recipe.loading import load_recipe  # noqa: E402
from launcher.recipe.overrides import apply_overrides  # noqa: E402
from launcher.training import loop  # noqa: E402
from launcher.training.launch import Launch, World  # noqa: E402
from launcher.training.model import set_train_mode  # noqa: E402


class Pairs:
    """Takes each step of a run a second time, bare."""

    def __init__(self, bf16: bool) -> None:
        self._bf16 = bf16
        self.ratios: list[float] = []
        self._step = loop.train_step
        self._bare: tuple[nn.Module, torch.optim.Optimizer] | None = None
        loop.train_step = self.train_step  # type: ignore[assignment]

    def train_step(self, run: Any, state: Any, batches: Iterator[Any], step: int) -> None:
        if self._bare is None:
            model = copy.deepcopy(run.model).requires_grad_(True)
            set_train_mode(model, "keep")
            self._bare = model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        batch = next(batches).to(run.accelerator.device)
        works: list[Callable[[], None]] = [
            lambda: self._step(run, state, iter([batch]), step),
            lambda: self._bare_step(batch.images, batch.targets),
        ]
        order = (0, 1) if step % 2 == 0 else (1, 0)
        seconds = [0.0, 0.0]
        for number in order:
            begin = time.perf_counter()
            works[number]()
            seconds[number] = time.perf_counter() - begin
        self.ratios.append(seconds[0] / seconds[1])

    def _bare_step(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        assert self._bare is not None
        model, optimizer = self._bare
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            loss = nn.functional.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--bf16", action="store_true")
    words = parser.parse_args()
    loaded = load_recipe("benchmarks/recipes/ants_and_bees.py:everything")
    changes = [f"data.root={Path(words.root).absolute()}", f"backbone.name={words.model}"]
    changes += [f"freeze_plan.0.epochs={words.epochs}", "optim.momentum=0.9"]
    changes += ["mixed_precision=bf16"] if words.bf16 else []
    loaded = dataclasses.replace(loaded, recipe=apply_overrides(loaded.recipe, changes))
    pairs = Pairs(words.bf16)
    with tempfile.TemporaryDirectory() as folder:
        loop.run(loaded, Launch(run_dir=Path(folder, "run"), num_workers=0, world=World(use_cpu=True)))
    ratios = sorted(pairs.ratios[2:])
    print(
        f"{len(ratios)} pairs of steps: launcher / bare {statistics.median(ratios):.3f} (the middle half from "
        f"{ratios[len(ratios) // 4]:.3f} to {ratios[3 * len(ratios) // 4]:.3f})"
    )


if __name__ == "__main__":
    main()
