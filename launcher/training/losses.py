"""The losses of the last steps and the finiteness of their gradients, read from the devices for several at once."""

from __future__ import annotations

import torch

from launcher.training.nonfinite import NonFiniteGradientError, where
from launcher.training.run import PhaseState, Run
from launcher.training.trackers import log_step


def read_losses(run: Run, state: PhaseState) -> float:
    """Read the losses of the last steps from the devices, write their rows, and return the epoch's mean loss so far.

    Losses are summed in the order of the processes and of the steps, so the time of reading does not change a bit.
    Raise NonFiniteGradientError, on all processes, for the first step whose gradient was not finite.
    """
    progress = run.progress
    if state.unread:
        mine = torch.stack([step.loss_sum for step in state.unread])
        by_process = run.accelerator.gather(mine.unsqueeze(0)).cpu()
        known = torch.ones_like(mine, dtype=torch.bool)
        finite = torch.stack([known[0] if step.finite is None else step.finite for step in state.unread]).tolist()
        for step, is_finite, losses in zip(state.unread, finite, by_process.T, strict=True):
            row = step.row
            if not is_finite:
                place = where(run, state.resolved, row["step"], step.step_in_epoch)
                raise NonFiniteGradientError(
                    f"{place}; nothing of it was saved; on_nonfinite=skip leaves such steps out"
                )
            total = sum(losses.tolist())
            progress.loss_sum += total
            progress.loss_samples += 0 if "skipped" in row else row["samples"]
            loss = None if "skipped" in row else total / row["samples"]
            if run.metrics:
                run.metrics.write(row | {"loss": loss})
            log_step(run, state.resolved, row, loss)
        state.unread.clear()
    return progress.train_loss
