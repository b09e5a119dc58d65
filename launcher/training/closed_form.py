"""A head that starts where ridge regression on the features puts it (heads.Linear(init="ridge")).

Training the head first and all then keeps the features better than both at once (LP-FT,
https://arxiv.org/abs/2202.10054); in closed form the first half takes one look at the data.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object
from torch import nn

from launcher.recipe.head_modules import LinearHead
from launcher.recipe.transforms import evaluation
from launcher.training.features.batches import FeatureLoader
from launcher.training.images import end_workers, evaluation_loader
from launcher.training.interruption import StoppedError
from launcher.training.pieces import in_pieces
from launcher.training.ridge import Moments, Ridge
from launcher.training.sampling import epoch_order, seed_for
from launcher.training.state import PhaseState, Run

HELD_OUT = 0.2
"""Share of the training images on which L2 and scale are chosen."""
HELD_OUT_AT_MOST = 10_000
"""Their features are held in memory."""
RELATIVE_L2S = torch.logspace(-6, 2, 25, dtype=torch.float64)
SCALES = torch.logspace(-2, 8, 21, base=2, dtype=torch.float64)
"""Of the outputs: least squares aims at -1 and 1, and a sigmoid or softmax needs other logits to be sure."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A head in closed form, and what it was chosen by."""

    weight: torch.Tensor
    """float32 (outputs, features), like the bias on the CPU."""
    bias: torch.Tensor
    l2: float
    """As the alpha of scikit-learn's Ridge, on all training images."""
    scale: float
    fitted: int
    held_out: int
    loss: float
    """On the images held out."""
    outputs: torch.Tensor
    """Of this process's images held out, (n, outputs), from the fit to the others."""
    targets: torch.Tensor


def in_closed_form(head: Any) -> bool:
    """Whether a recipe's head starts so."""
    return getattr(head, "init", None) == "ridge"


def start_head(run: Run, state: PhaseState) -> float:
    """Put the head where ridge regression on the training images' features puts it. Called by all processes.

    Returns the loss on the images that were held out.

    Raises StoppedError where the run is asked to stop meanwhile; nothing is lost, for nothing was trained.
    """
    head = state.model.head
    assert isinstance(head, LinearHead)
    begin = time.perf_counter()
    chosen = closed_form(run, state, head)
    with torch.no_grad():
        head.weight.copy_(broadcast(chosen.weight.to(head.weight.device)))
        if head.bias is not None:
            head.bias.copy_(broadcast(chosen.bias.to(head.bias.device)))
    if state.average is not None:
        state.average.restart()
    seconds = time.perf_counter() - begin
    metrics = held_out_metrics(run, chosen)
    name = run.prepared.task.monitor
    shown = f", {name} {metrics[name]:.4f}" if name in metrics else ""
    run.screen.line(
        f"head in closed form from {chosen.fitted} images, L2 {chosen.l2:.3g} and scale {chosen.scale:.3g} chosen on "
        f"{chosen.held_out} others of the training images (loss {chosen.loss:.4f}{shown}); {seconds:.1f} s"
    )
    if run.accelerator.is_main_process:
        row = {"head": "ridge", "seconds": seconds, "l2": chosen.l2, "scale": chosen.scale}
        run.rundir.add_timing(row | {"held_out": chosen.held_out, "loss": chosen.loss})
    return chosen.loss


def closed_form(run: Run, state: PhaseState, head: LinearHead) -> Chosen:
    """The same on every process and on any number of them, to rounding."""
    recipe, task, splits = run.recipe, run.prepared.task, run.prepared.splits
    accelerator, kind = run.accelerator, run.recipe.task.target_kind
    total = len(splits.train)
    count = min(max(1, int(HELD_OUT * total)), HELD_OUT_AT_MOST)
    aside = torch.zeros(total, dtype=torch.bool)
    aside[torch.from_numpy(epoch_order(total, seed_for("held out", recipe.seed), 0)[:count])] = True

    device = accelerator.device if accelerator.device.type == "cuda" else torch.device("cpu")
    fitted, held = (Moments(head.in_features, head.out_features, device) for _ in range(2))
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for features, targets, indices in features_of_training(run, state):
        goals, held_out = goals_of(task, kind, targets), aside[indices]
        for moments, mask in ((fitted, ~held_out), (held, held_out)):
            if mask.any():
                moments.add(features[mask], goals[mask])
        if held_out.any():
            kept.append((features[held_out].float().cpu(), targets[held_out].cpu()))
    for moments in (fitted, held):
        moments.apply(lambda value: accelerator.reduce(value.to(accelerator.device), "sum").to(device))

    mine = torch.cat([part[0] for part in kept]) if kept else torch.zeros(0, head.in_features)
    targets = torch.cat([part[1] for part in kept]) if kept else torch.as_tensor(splits.train.targets[:0])
    with_bias = head.bias is not None
    scales = SCALES if kind != "values" else torch.ones(1, dtype=torch.float64)
    losses = torch.zeros(len(RELATIVE_L2S), len(scales), dtype=torch.float64)
    tried = []
    for row, (weight, bias) in zip(losses, Ridge(fitted, with_bias=with_bias).fits(RELATIVE_L2S), strict=True):
        outputs = mine @ weight.float().cpu().T + bias.float().cpu()
        tried.append(outputs)
        for column, scale in enumerate(scales.tolist()):
            row[column] = task.loss(outputs * scale, targets).double().sum()
    losses = accelerator.reduce(losses.to(accelerator.device), "sum").cpu() / count
    losses = losses.nan_to_num(nan=torch.inf)
    best, column = divmod(int(losses.argmin()), len(scales))
    scale = float(scales[column])
    whole = Ridge(fitted + held, with_bias=with_bias)
    l2 = float(RELATIVE_L2S[best]) * whole.scale_of_l2
    weight, bias = whole.fit(l2)
    return Chosen(
        weight=(weight * scale).float().cpu(),
        bias=(bias * scale).float().cpu(),
        l2=l2,
        scale=scale,
        fitted=total - count,
        held_out=count,
        loss=float(losses[best, column]),
        outputs=tried[best] * scale,
        targets=targets,
    )


def held_out_metrics(run: Run, chosen: Chosen) -> dict[str, float]:
    """Of the fit to the other images. Called by all processes."""
    everyones = gather_object([(chosen.outputs, chosen.targets)])
    outputs, targets = (torch.cat([part[number] for part in everyones]) for number in range(2))
    return run.prepared.task.metrics(outputs, targets)


def goals_of(task: Any, kind: str, targets: torch.Tensor) -> torch.Tensor:
    """What least squares aims at, (N, outputs): -1 and 1 for classes and labels, normalised values."""
    if kind != "values":
        return 2 * torch.as_tensor(task.encode(targets)) - 1
    mean, std = getattr(task, "mean", None), getattr(task, "std", None)
    return targets if mean is None or std is None else (targets - mean.to(targets.device)) / std.to(targets.device)


@torch.no_grad()
def features_of_training(run: Run, state: PhaseState) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Features (n, d), targets and indices of this process's share of the training images, each once.

    Where the phase has stored the head's very inputs they are read (the first of several views); else they are
    computed, in the evaluation view. Raises StoppedError where the run is asked to stop.
    """
    accelerator, model, size = run.accelerator, state.model, run.val_batch_size
    total = len(run.prepared.splits.train)
    backbone, head = model.backbone, model.head
    assert isinstance(backbone, nn.Module)
    assert isinstance(head, LinearHead)
    crossing = state.prefix.layout.crossing if state.prefix is not None else ()
    if isinstance(state.source.train, FeatureLoader) and [part.shape for part in crossing] == [(head.in_features,)]:
        share = range(accelerator.process_index, total, accelerator.num_processes)
        keys = [[(0, index) for index in share[begin : begin + size]] for begin in range(0, len(share), size)]
        for batch in _in_step(run, state.source.train.of(keys), total):
            yield batch.features[0], batch.targets, batch.indices
        return
    loader = evaluation_loader(
        run.prepared.splits.train,
        evaluation(run.prepared.preprocessing),
        batch_size=size,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        num_workers=run.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    model.eval()
    try:
        for batch in _in_step(run, loader, total):
            with accelerator.autocast():
                features = in_pieces(backbone, batch.to(accelerator.device).images)
            yield features, batch.targets, batch.indices
    finally:
        end_workers(loader)


def _in_step(run: Run, batches: Any, total: int) -> Iterator[Any]:
    """A process may have one batch less than others; all look equally often whether they are asked to stop."""
    iterator = iter(batches)
    largest_share = -(-total // run.accelerator.num_processes)
    for _ in range(-(-largest_share // run.val_batch_size)):
        run.watchdog.beat("fitting the head in closed form")
        reason, _ = run.interruption.agreed()
        if reason:
            raise StoppedError(reason)
        batch = next(iterator, None)
        if batch is not None:
            yield batch
    next(iterator, None)
