"""Data order and randomness as pure functions of (seed, epoch, sample): no state to save, none to lose."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch

from launcher.training.batch_arithmetic import Batching

Key: TypeAlias = tuple[int, int]
"""(epoch, sample index): the key of a sample in a training data set."""


def seed_for(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) from any numbers and words; it is the same on every machine and in every version."""
    text = b"".join(
        b"s" + part.encode() + b"\0" if isinstance(part, str) else b"i" + struct.pack("<q", part) for part in parts
    )
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the order of an epoch: a permutation of range(num_samples) drawn from (seed, epoch).

    The samples are sorted by the raw stream of PCG64, which numpy promises never to change (its `permutation` carries
    no such promise).
    """
    raw = np.random.PCG64(seed_for("order", seed, epoch)).random_raw(num_samples)
    return np.argsort(raw, kind="stable").astype(np.int64)


class TrainingKeys:
    """The batch sampler of one process, which yields the keys of its samples for each micro-step of an epoch.

    `start(epoch, step)` sets where the next iteration begins. An empty micro-batch (the last, smaller batch of an epoch
    may have one) is given one sample to keep the processes in step; its weight in the loss is 0.
    """

    def __init__(self, num_samples: int, batching: Batching, process_index: int, seed: int) -> None:
        self.num_samples = num_samples
        self.batching = batching
        self.process_index = process_index
        self.seed = seed
        self.epoch = 0
        self.first_step = 0

    def start(self, epoch: int, step: int) -> None:
        """Set the epoch and the step in it (0-based) at which the next iteration begins."""
        self.epoch, self.first_step = epoch, step

    def micro_batches(self, step: int) -> list[tuple[int, int]]:
        """Return (first, end) of each micro-batch of this process at `step`, as positions in the epoch's order."""
        begin = step * self.batching.batch_size
        slices = self.batching.micro_slices(self.taken(step), self.process_index)
        return [(begin + piece.start, begin + piece.stop) for piece in slices]

    def taken(self, step: int) -> int:
        """Return the number of samples in the global batch at `step` of an epoch, over all processes."""
        return min(self.batching.batch_size, self.num_samples - step * self.batching.batch_size)

    def __len__(self) -> int:
        steps = range(self.first_step, self.batching.steps_per_epoch(self.num_samples))
        return sum(len(self.micro_batches(step)) for step in steps)

    def __iter__(self) -> Iterator[list[Key]]:
        order = epoch_order(self.num_samples, self.seed, self.epoch)
        for step in range(self.first_step, self.batching.steps_per_epoch(self.num_samples)):
            for first, end in self.micro_batches(step):
                indices = order[first:end] if end > first else order[step * self.batching.batch_size :][:1]
                yield [(self.epoch, int(index)) for index in indices]


def seed_micro_step(seed: int, step: int, process_index: int, micro_step: int) -> None:
    """Seed the network's random draws (dropout, stochastic depth), so that a restart repeats them."""
    drawn = seed_for("network", seed, step, process_index, micro_step)
    torch.default_generator.manual_seed(drawn)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(drawn)
