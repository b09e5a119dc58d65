"""The search for the largest micro-batch that fits the device's memory (`--micro-batch auto`)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator

from launcher.errors import UserError
from launcher.training.batch_arithmetic import Batching
from launcher.training.model import freeze
from launcher.training.preflight import Prepared


def largest_that_fits(sizes: Sequence[int], attempt: Callable[[int], None]) -> int:
    """Return the largest of `sizes` for which `attempt` does not run out of memory, trying from the largest down.

    Raise UserError if none fits. Other exceptions of `attempt` pass through.
    """
    for size in sorted(sizes, reverse=True):
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        return size
    raise UserError(
        "--micro-batch auto: not even one image fits the memory of the device; use a smaller backbone or size"
    )


def fitted(accelerator: Accelerator, prepared: Prepared) -> Batching:
    """Return the batch arithmetic with the largest micro-batch that fits every process, in the phase that trains most.

    It is found before training by a forward and backward pass of each candidate size. The mathematics are the same for
    any size. On a CPU, whose memory is large, the default stays.
    """
    batching = prepared.batching
    if accelerator.device.type != "cuda":
        return batching
    share = batching.batch_size // batching.num_processes
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    side = prepared.preprocessing.image_size
    most = max(prepared.phases, key=lambda resolved: resolved.trainable_parameters)

    def attempt(size: int) -> None:
        model = copy.deepcopy(prepared.model).to(accelerator.device).to(memory_format=torch.channels_last)
        freeze(model, most.lr_scales)
        model.train(False)
        images = torch.zeros(size, 3, side, side, device=accelerator.device)
        with accelerator.autocast():
            outputs = model(images.to(memory_format=torch.channels_last))
        outputs.float().square().sum().backward()
        # Room for what a step needs besides: Adam keeps two more numbers per trained parameter, and DDP its buckets.
        torch.empty(3 * most.trainable_parameters, device=accelerator.device)

    mine = largest_that_fits(sizes, attempt)
    torch.cuda.empty_cache()
    sizes_of_all = accelerator.gather(torch.tensor([mine], device=accelerator.device))
    return dataclasses.replace(batching, micro_batch_size=int(sizes_of_all.min()))
