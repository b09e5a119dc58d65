"""The start of a head from ridge regression on the features (heads.Linear(init="ridge")).

Training first the head and then the whole network preserves the features better than training both at once (LP-FT,
https://arxiv.org/abs/2202.10054); in closed form the first half takes a single pass over the data.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast, gather_object
from torch import nn

from launcher.compat import end_workers
from launcher.errors import UserError
from launcher.recipe.abilities import NormalisesTargets
from launcher.recipe.head_modules import LinearHead
from launcher.recipe.protocols import BuiltTask
from launcher.recipe.transforms import evaluation
from launcher.text import number as measured
from launcher.text import plural
from launcher.training.chunks import in_pieces
from launcher.training.data_order import epoch_order, seed_for
from launcher.training.feature_cache.loader import FeatureLoader
from launcher.training.images import evaluation_loader
from launcher.training.ridge import Moments, Ridge, RidgeOfMoments, RidgeOfSamples
from launcher.training.run import PhaseState, Run

if TYPE_CHECKING:
    from accelerate import Accelerator

HELD_OUT = 0.2
"""Share of the training images that are held out to choose L2 and scale."""
HELD_OUT_AT_MOST = 10_000
"""The most images that are held out, because their features are kept in memory."""
RELATIVE_L2S = torch.logspace(-6, 2, 25, dtype=torch.float64)
SCALES = torch.logspace(-2, 8, 21, base=2, dtype=torch.float64)
"""Factors for the outputs: least squares aims at -1 and 1, and a sigmoid or softmax needs larger logits to be sure."""
AT_ONCE = 2**20
"""Number of outputs whose loss is computed in one call.

One call for each of the 25 x 21 choices took two fifths of the time of a small fit.
"""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A head in closed form, with the L2 and scale that were chosen and the results on the images held out."""

    weight: torch.Tensor
    """float32 (outputs, features), on the CPU like the bias."""
    bias: torch.Tensor
    l2: float
    """The alpha of scikit-learn's Ridge, for a fit to all training images."""
    scale: float
    fitted: int
    held_out: int
    loss: float
    """The loss on the images held out."""
    outputs: torch.Tensor
    """(n, outputs): the outputs for this process's images held out, from the fit to the others."""
    targets: torch.Tensor


def start_head(run: Run, state: PhaseState) -> float:
    """Fit the head to the training images' features by ridge regression, and return the loss on the images held out.

    All processes must call this. Raise StoppedError if the run is asked to stop meanwhile; nothing is lost, because
    nothing was trained.
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
    shown = f", {name} {measured(metrics[name])}" if name in metrics else ""
    images, others = plural(chosen.fitted, "image", spec=""), plural(chosen.held_out, "other", spec="")
    run.screen.line(
        f"head in closed form from {images}, L2 {chosen.l2:.3g} and scale {chosen.scale:.3g} chosen on {others} of the "
        f"training images (loss {measured(chosen.loss)}{shown}); {seconds:.1f} s"
    )
    if run.accelerator.is_main_process:
        phase = {"number": state.resolved.number, "phase": state.resolved.phase.name}
        row = phase | {"head": "ridge", "seconds": seconds, "l2": chosen.l2, "scale": chosen.scale}
        run.rundir.add_timing(row | {"held_out": chosen.held_out, "loss": chosen.loss})
    return chosen.loss


def closed_form(run: Run, state: PhaseState, head: LinearHead) -> Chosen:
    """Return the head in closed form: the same on every process, and to rounding for any number of processes."""
    recipe, task, splits = run.recipe, run.prepared.task, run.prepared.splits
    accelerator, kind = run.accelerator, run.recipe.task.target_kind
    total = len(splits.train)
    count = min(max(1, int(HELD_OUT * total)), HELD_OUT_AT_MOST)
    aside = torch.zeros(total, dtype=torch.bool)
    aside[torch.from_numpy(epoch_order(total, seed_for("held out", recipe.seed), 0)[:count])] = True

    samples, with_bias = Samples(head, aside, splits.train.targets), head.bias is not None
    for features, targets, indices in features_of_training(run, state):
        samples.add(features, goals_of(task, kind, targets), targets, indices)
    fitted, full = samples.ridges(accelerator, with_bias=with_bias)
    if not (math.isfinite(full.mean_eigenvalue) and fitted.mean_eigenvalue > 0 and full.mean_eigenvalue > 0):
        what = "the same for all of them" if math.isfinite(full.mean_eigenvalue) else "not finite"
        raise UserError(
            f"head.init='ridge': the backbone's features of the {plural(total, 'training image', spec='')} are {what}, "
            "so there is nothing to fit; look at the images and at backbone.weights, or use head.init=normal"
        )

    scales = scales_for(kind)
    features, targets = samples.held_out()
    tried, losses = losses_of(task, fitted, features, targets, scales)
    losses = accelerator.reduce(losses.to(accelerator.device), "sum").cpu() / count
    losses = losses.nan_to_num(nan=torch.inf)
    best, column = divmod(int(losses.argmin()), len(scales))
    scale, l2 = float(scales[column]), float(RELATIVE_L2S[best]) * full.mean_eigenvalue
    weight, bias = full.fit(l2)
    return Chosen(
        weight=(weight * scale).float().cpu(),
        bias=(bias * scale).float().cpu(),
        l2=l2,
        scale=scale,
        fitted=total - count,
        held_out=count,
        loss=float(losses[best, column]),
        outputs=(tried[best] * scale).cpu(),
        targets=targets.cpu(),
    )


def scales_for(kind: str) -> torch.Tensor:
    """Return the scales to try for a kind of target; for values only 1, as the fit aims at the values themselves."""
    return SCALES if kind != "values" else torch.ones(1, dtype=torch.float64)


def losses_of(
    task: Any, ridge: Ridge, features: torch.Tensor, targets: torch.Tensor, scales: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the outputs (n, k) on the samples held out for each of RELATIVE_L2S, and the sums of the loss.

    The sums are float64 of shape (L2, scale).
    """
    tried = []
    for weight, bias in ridge.fits(RELATIVE_L2S * ridge.mean_eigenvalue):
        tried.append(features @ weight.float().T + bias.float())
    return tried, torch.stack([_loss_sums(task, outputs, targets, scales) for outputs in tried])


def _loss_sums(task: Any, outputs: torch.Tensor, targets: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the sum of the loss over the samples for each scale, computed for several scales at once (some MB)."""
    sums, step = [], max(1, AT_ONCE // max(1, outputs.numel()))
    for begin in range(0, len(scales), step):
        some = scales[begin : begin + step].float().to(outputs.device)
        scaled = (some.reshape(-1, 1, 1) * outputs).flatten(0, 1)
        losses = task.loss(scaled, targets.repeat(len(some), *[1] * (targets.dim() - 1)))
        sums.append(losses.double().reshape(len(some), -1).sum(dim=1).cpu())
    return torch.cat(sums)


class Samples:
    """This process's share of the features.

    Features held out are kept. The rest go into sums or, if there are no more samples than features, are kept as well.
    """

    def __init__(self, head: LinearHead, aside: torch.Tensor, targets: Any) -> None:
        self._aside, self._few = aside, len(aside) <= head.in_features
        self._rows: list[tuple[torch.Tensor, ...]] = []
        device = head.weight.device if head.weight.device.type == "cuda" else torch.device("cpu")
        self._device = device
        self._fitted, self._held = (Moments(head.in_features, head.out_features, device) for _ in range(2))
        none = torch.zeros(0, head.in_features, device=device), torch.as_tensor(targets[:0]).to(device)
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = [none]

    def add(self, features: torch.Tensor, goals: torch.Tensor, targets: torch.Tensor, indices: torch.Tensor) -> None:
        """Add a batch: features (n, d), goals (n, outputs), targets, and the samples' indices in the split."""
        features, held = features.to(self._device).float(), self._aside[indices].to(self._device)
        goals, targets = goals.to(self._device), targets.to(self._device)
        self._kept.append((features[held], targets[held]))
        if self._few:
            self._rows.append((indices, features.cpu(), goals.cpu()))
            return
        self._fitted.add(features[~held], goals[~held])
        self._held.add(features[held], goals[held])

    def held_out(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features and targets of the samples held out."""
        features, targets = zip(*self._kept, strict=True)
        return torch.cat(features), torch.cat(targets)

    def ridges(self, accelerator: Accelerator, *, with_bias: bool) -> tuple[Ridge, Ridge]:
        """Return the fits to the samples that are not held out and to all samples, over all processes.

        All processes must call this.
        """
        if self._few:
            everyones = gather_object(self._rows)
            indices, features, goals = (torch.cat([row[number] for row in everyones]) for number in range(3))
            order = indices.argsort()  # for the same bits on any number of processes
            indices, features, goals = indices[order], features[order].to(self._device), goals[order].to(self._device)
            fitting = ~self._aside[indices].to(self._device)
            fitted = RidgeOfSamples(features[fitting], goals[fitting], with_bias=with_bias)
            return fitted, RidgeOfSamples(features, goals, with_bias=with_bias)
        for moments in (self._fitted, self._held):
            moments.apply(lambda value: accelerator.reduce(value.to(accelerator.device), "sum").to(self._device))
        return (
            RidgeOfMoments(self._fitted, with_bias=with_bias),
            RidgeOfMoments(self._fitted + self._held, with_bias=with_bias),
        )


def held_out_metrics(run: Run, chosen: Chosen) -> dict[str, float]:
    """Return the metrics on the images held out, for the fit to the others. All processes must call this."""
    everyones = gather_object([(chosen.outputs, chosen.targets)])
    outputs, targets = (torch.cat([part[number] for part in everyones]) for number in range(2))
    return run.prepared.task.metrics(outputs, targets)


def goals_of(task: BuiltTask, kind: str, targets: torch.Tensor) -> torch.Tensor:
    """Return the goals of least squares, (N, outputs).

    These are -1 and 1 for classes and labels; values are normalised if the task does so.
    """
    if kind != "values":
        return 2 * torch.as_tensor(task.encode(targets)) - 1
    return torch.as_tensor(task.normalised(targets)) if isinstance(task, NormalisesTargets) else targets


@torch.no_grad()
def features_of_training(run: Run, state: PhaseState) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield features (n, d), targets and indices of this process's share of the training images, each image once.

    If the phase has stored the inputs of the head, they are read (the first of several views). Otherwise the features
    are computed with the evaluation transform. Raise StoppedError if the run is asked to stop.
    """
    accelerator, model, size = run.accelerator, state.model, run.val_batch_size
    total = len(run.prepared.splits.train)
    backbone, head = model.backbone, model.head
    assert isinstance(backbone, nn.Module)
    assert isinstance(head, LinearHead)
    boundary = state.prefix.layout.boundary if state.prefix is not None else ()
    if isinstance(state.source.train, FeatureLoader) and [part.shape for part in boundary] == [(head.in_features,)]:
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
    """Yield the batches, checking equally often on all processes whether the run is asked to stop.

    A process may have one batch less than the others.
    """
    iterator = iter(batches)
    largest_share = -(-total // run.accelerator.num_processes)
    for _ in range(-(-largest_share // run.val_batch_size)):
        run.check_in("fitting the head in closed form")
        batch = next(iterator, None)
        if batch is not None:
            yield batch
    next(iterator, None)
