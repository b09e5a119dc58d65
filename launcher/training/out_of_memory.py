"""Recovery from a lack of memory in a training step (`--micro-batch auto`): all processes redo it in smaller chunks.

Without it, a process that runs out of memory would leave the others waiting in DDP's all-reduce. Here the processes do
not communicate in a backward pass: first they agree on whether all have their gradient, then they average it. This
costs the communication that DDP hides behind the backward pass, and one small message over the CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from launcher.compat import divide_all
from launcher.errors import UserError
from launcher.text import plural
from launcher.training.data_order import seed_micro_step
from launcher.training.feature_cache.loader import FeatureBatch
from launcher.training.images import Batch
from launcher.training.model import norm_layers_that_train
from launcher.training.run import PhaseState, Run
from launcher.training.step import forward_backward, inputs_of


def can_redo_steps(run: Run, state: PhaseState) -> bool:
    """Return whether a step that runs out of memory can be redone.

    It cannot without `--micro-batch auto`, nor if SyncBatchNorm joins the processes in each forward pass.
    """
    joined = run.recipe.sync_batchnorm and state.resolved.phase.norm_statistics == "update"
    return run.parts is not None and not joined


def accumulate_what_fits(
    run: Run, state: PhaseState, batches: Iterator[Batch | FeatureBatch], step_in_epoch: int
) -> torch.Tensor:
    """Compute a step's gradient, averaged over the processes, in chunks that fit the memory.

    The gradient is accumulated in the parameters. Return this process's sum of losses. Raise UserError, on all
    processes, if even the smallest chunk of a micro-batch does not fit.
    """
    kept = [next(batches) for _ in run.keys.micro_batches(step_in_epoch)]
    statistics = _norm_statistics(state)
    before = [buffer.clone() for buffer in statistics]
    while True:
        loss_sum = _attempt(run, state, kept, step_in_epoch)
        if not run.interruption.anywhere(loss_sum is None):
            break
        loss_sum = None
        for buffer, value in zip(statistics, before, strict=True):
            buffer.copy_(value)
        _halve(run, state)
    assert loss_sum is not None
    _average_gradients(run, state)
    return loss_sum


def _attempt(
    run: Run, state: PhaseState, kept: Sequence[Batch | FeatureBatch], step_in_epoch: int
) -> torch.Tensor | None:
    """Compute this process's gradient and return its sum of losses, or None if it ran out of memory.

    The error holds the frames of the failed pass, and these hold its tensors: all memory is free only after this
    function has returned.
    """
    try:
        return _accumulate(run, state, kept, step_in_epoch)
    except torch.OutOfMemoryError:
        return None


def _accumulate(run: Run, state: PhaseState, kept: Sequence[Batch | FeatureBatch], step_in_epoch: int) -> torch.Tensor:
    accelerator, parts = run.accelerator, run.parts or 1
    taken, least = run.keys.taken(step_in_epoch), _least(state)
    loss_sum = torch.zeros((), device=accelerator.device, dtype=torch.float64)
    micro_batches = run.keys.micro_batches(step_in_epoch)
    for micro_step, ((first, end), batch) in enumerate(zip(micro_batches, kept, strict=True)):
        inputs, targets = inputs_of(run, state, batch)
        # A short micro-batch, as the last of an epoch may be, cannot be cut into as many chunks.
        cuts = max(1, min(parts, len(targets) // least))
        pieces = zip(*(tensor.tensor_split(cuts) for tensor in (*inputs, targets)), strict=True)
        for part, (*some, some_targets) in enumerate(pieces):
            drawn = micro_step * parts + part
            seed_micro_step(run.recipe.seed, run.progress.step, accelerator.process_index, drawn)
            with accelerator.no_sync(state.wrapped):
                loss_sum += forward_backward(run, state, some, some_targets, taken, is_empty=first == end)
    return loss_sum


def _least(state: PhaseState) -> int:
    """Return the fewest samples in a chunk: 2 if BatchNorm updates its statistics, which may need more than one."""
    return 2 if _norm_statistics(state) else 1


def _norm_statistics(state: PhaseState) -> list[torch.Tensor]:
    """Return the BatchNorm buffers that a forward pass updates, and that a repeated step must not update twice."""
    if state.resolved.phase.norm_statistics == "keep":
        return []
    return [buffer for layer in norm_layers_that_train(state.model).values() for buffer in layer.buffers(recurse=False)]


def _halve(run: Run, state: PhaseState) -> None:
    """Discard the gradient of a failed pass, and go on with twice as many chunks. All processes must call this."""
    parts, size = run.parts or 1, run.keys.batching.micro_batch_size
    most = max(1, size // _least(state))
    if parts >= most:
        at_once = -(-size // parts)
        raise UserError(
            f"--micro-batch auto: step {run.progress.step + 1} ({state.resolved.phase.name}) ran out of memory with "
            f"{plural(at_once, 'image', spec='')} of its micro-batch of {size} at a time, and less is not "
            "possible; use a smaller backbone or image size"
        )
    state.optimizer.zero_grad(set_to_none=True)
    if run.accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    run.parts = min(2 * parts, most)
    run.watchdog.beat(f"step {run.progress.step + 1}, again in {run.parts} parts")
    run.screen.line(
        f"out of memory: computing each micro-batch in {run.parts} parts from now on (step {run.progress.step + 1})",
        style="yellow",
    )


def _average_gradients(run: Run, state: PhaseState) -> None:
    """Average the gradients over the processes, as DDP does in an ordinary backward pass."""
    num_processes = run.accelerator.num_processes
    if num_processes == 1:
        return
    gradients = [p.grad for p in state.wrapped.parameters() if p.requires_grad and p.grad is not None]
    works = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
    for work in works:
        work.wait()
    divide_all(gradients, num_processes)
