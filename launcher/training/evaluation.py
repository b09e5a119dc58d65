"""Evaluation that counts every sample exactly once on any number of processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from launcher.recipe.protocols import BuiltTask, Split
from launcher.text import plural
from launcher.training.chunks import in_pieces
from launcher.training.feature_cache.loader import FeatureBatch
from launcher.training.images import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclasses.dataclass(frozen=True)
class KeptOutputs:
    """The outputs on the validation images of the weights that `final/` would hold if the run ended now."""

    step: int
    outputs: torch.Tensor
    """float32 (samples, num_outputs), on the CPU."""


@torch.no_grad()
def outputs_of(
    accelerator: Accelerator,
    model: nn.Module,
    loader: Iterable[Batch | FeatureBatch],
    num_samples: int,
    num_outputs: int,
    batch_size: int,
    between_batches: Callable[[], None],
    prefix: Callable[[Batch], tuple[torch.Tensor, ...]] | None = None,
) -> torch.Tensor:
    """Return the outputs of every sample of a split in its order, float32 (num_samples, num_outputs), on the CPU.

    The result is the same on every process. `loader` yields this process's share: samples process_index,
    process_index + num_processes, ... `between_batches` is called equally often on every process. `prefix`, if the
    network is cut in two, computes from images what `model` takes. `model` must not be wrapped in DDP: the shares may
    differ by one sample, and no forward pass may wait for another process.
    """
    model.eval()
    rows = -(-num_samples // accelerator.num_processes)
    mine = torch.zeros(rows, num_outputs, device=accelerator.device)
    filled = 0
    batches = iter(loader)
    for _ in range(-(-rows // batch_size)):
        between_batches()
        batch = next(batches, None)
        if batch is None:  # a share may be one sample smaller than the largest, and so have one batch less
            continue
        if isinstance(batch, FeatureBatch):
            outputs = model(*batch.to(accelerator.device).features)
        elif prefix is None:
            outputs = in_pieces(model, batch.to(accelerator.device).images)
        else:
            outputs = model(*prefix(batch.to(accelerator.device, normalised=False)))
        mine[filled : filled + len(outputs)] = outputs.float()
        filled += len(outputs)
    next(batches, None)  # exhausts the loader, so that its workers are ready for the next evaluation
    expected = len(range(accelerator.process_index, num_samples, accelerator.num_processes))
    assert filled == expected, (
        f"process {accelerator.process_index} evaluated {plural(filled, 'sample', spec='')}, not {expected}"
    )
    gathered: torch.Tensor = accelerator.gather(mine)
    # Sample i was row i // num_processes of process i % num_processes.
    interleaved = gathered.reshape(accelerator.num_processes, rows, num_outputs).transpose(0, 1)
    return interleaved.reshape(-1, num_outputs)[:num_samples].cpu()


def metrics_of(task: BuiltTask, outputs: torch.Tensor, split: Split) -> dict[str, float]:
    """Return the metrics of a split's outputs."""
    return task.metrics(outputs, torch.as_tensor(split.targets))
