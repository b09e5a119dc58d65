"""Batch arithmetic: the division of the recipe's global batch into processes x micro-batches x accumulation."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from launcher.errors import UserError
from launcher.text import plural

# The largest micro-batch that is chosen by default: in full fine-tuning of a ResNet-50, 64 images of 224 px fit the
# memory of most GPUs, and more on one device gains little speed.
LARGEST_DEFAULT_MICRO_BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
    """The division of a global batch among processes; it changes speed and memory, never the mathematics."""

    batch_size: int
    num_processes: int
    micro_batch_size: int

    @property
    def accumulation_steps(self) -> int:
        """Return the number of micro-batches per process in a full global batch."""
        return self.batch_size // (self.num_processes * self.micro_batch_size)

    def steps_per_epoch(self, num_samples: int) -> int:
        """Return the number of optimizer steps in an epoch; the last one takes the samples that are left."""
        return math.ceil(num_samples / self.batch_size)

    def micro_slices(self, taken: int, process_index: int) -> list[slice]:
        """Return this process's slices of the `taken` samples of a global batch, one per micro-step.

        Every process has the same number of micro-steps. In the last, smaller batch of an epoch the samples are spread
        evenly, and a slice may be empty. For an even micro-batch size, slices start at even positions, so that pairs of
        neighbours (MixUp, CutMix) stay together however the batch is split.
        """
        micro_steps = math.ceil(taken / (self.num_processes * self.micro_batch_size))
        slots = micro_steps * self.num_processes
        size = self.micro_batch_size if taken == self.batch_size else math.ceil(taken / slots)
        if size % 2 and self.micro_batch_size % 2 == 0:
            size += 1
        bounds = [min(taken, slot * size) for slot in range(slots + 1)]
        mine = range(process_index, slots, self.num_processes)
        return [slice(bounds[slot], bounds[slot + 1]) for slot in mine]

    def __str__(self) -> str:
        return (
            f"batch {self.batch_size} = {plural(self.num_processes, 'process', 'processes', spec='')} "
            f"x {self.micro_batch_size} per micro-batch x {self.accumulation_steps} accumulation"
        )


def batching_for(batch_size: int, num_processes: int, micro_batch_size: int | Literal["auto"] | None) -> Batching:
    """Return the batch arithmetic of a run.

    Raise UserError, with numbers that would work, if the batch cannot be divided without a remainder.
    """
    if batch_size % num_processes:
        near = sorted(
            {max(1, batch_size // num_processes) * num_processes, -(-batch_size // num_processes) * num_processes}
        )
        raise UserError(
            f"batch_size={batch_size} cannot be shared by {num_processes} processes evenly; "
            f"batch_size={' or '.join(map(str, near))} would work, or "
            f"{_divisors_text(batch_size)} {'process' if batch_size == 1 else 'processes'}"
        )
    share = batch_size // num_processes
    if micro_batch_size is None or micro_batch_size == "auto":
        micro_batch_size = max(size for size in _divisors(share) if size <= LARGEST_DEFAULT_MICRO_BATCH)
    if micro_batch_size < 1 or share % micro_batch_size:
        batch = f"batch_size={batch_size}"
        shared = f"the {plural(share, 'sample', spec='')} that each of {num_processes} processes takes of {batch}"
        raise UserError(
            f"--micro-batch {micro_batch_size} does not divide {batch if num_processes == 1 else shared}; "
            f"{_divisors_text(share)} would work"
        )
    return Batching(batch_size=batch_size, num_processes=num_processes, micro_batch_size=micro_batch_size)


def _divisors(number: int) -> list[int]:
    """Return the divisors of a number in ascending order.

    This takes as many divisions as the square root of the number: 46,341 for the largest batch size.
    """
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})


def _divisors_text(number: int) -> str:
    sizes = _divisors(number)
    return ", ".join(map(str, sizes if len(sizes) <= 8 else [*sizes[:4], "...", *sizes[-3:]]))
