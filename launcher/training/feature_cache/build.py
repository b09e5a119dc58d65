"""Computation of a split's feature rows by all processes together, resumed from where it was last interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from accelerate.utils import gather_object

from launcher.training.feature_cache.prefix import Prefix
from launcher.training.feature_cache.rows import Layout
from launcher.training.feature_cache.shards import BLOCK, InMemory, Shards
from launcher.training.feature_cache.views import FixedViews
from launcher.training.images import EvaluationImages, collate, loader_of
from launcher.training.run import Run

Views: TypeAlias = FixedViews | EvaluationImages
"""Images by (view, index), or by index."""


class Builder:
    """Builder of rows, which passes blocks of images through the prefix.

    All processes call `in_memory` and `on_disk` together. Both raise StoppedError if the run is asked to stop
    meanwhile; shards that are complete by then stay.
    """

    def __init__(self, run: Run, prefix: Prefix, layout: Layout, title: str, total_blocks: int) -> None:
        self._run, self._prefix, self._layout = run, prefix, layout
        self._title, self._total, self._done = title, total_blocks, 0
        run.screen.epoch_begins(title, total_blocks, 0)

    def close(self) -> None:
        """End the progress bar."""
        self._run.screen.end_bar()

    def in_memory(self, dataset: Views, count: int, key_of: Callable[[int], Any]) -> InMemory:
        """Compute the rows of `count` images, each process its share, and return all of them on every process."""
        accelerator = self._run.accelerator
        blocks = [range(begin, min(begin + BLOCK, count)) for begin in range(0, count, BLOCK)]
        size, me = accelerator.num_processes, accelerator.process_index
        computed = self._rows(dataset, blocks[me::size], key_of)
        memory = InMemory(count, self._layout.row_bytes)
        for first in range(0, len(blocks), size):
            self._look_around(min(size, len(blocks) - first))
            mine = next(computed, None)
            if size == 1:
                assert mine is not None
                memory.put(blocks[first].start, mine)
                continue
            padded = torch.zeros(BLOCK, self._layout.row_bytes, dtype=torch.uint8)
            if mine is not None:
                padded[: len(mine)] = mine
            everyones = accelerator.gather(padded.to(accelerator.device).unsqueeze(0)).cpu()
            for block, rows in zip(blocks[first : first + size], everyones, strict=False):
                memory.put(block.start, rows[: len(block)])
        return memory

    def on_disk(
        self, dataset: Views, shards: Shards, key_of: Callable[[int], Any], mine: Sequence[int]
    ) -> OSError | None:
        """Write the shards in `mine`, and return the error if the disk refuses one.

        After an error this process writes nothing more, but takes part in the remaining rounds of the others.
        """
        blocks = [
            range(begin, min(begin + BLOCK, samples.stop))
            for samples in map(shards.samples, mine)
            for begin in range(samples.start, samples.stop, BLOCK)
        ]
        rounds = max(gather_object([len(blocks)]))
        computed = self._rows(dataset, blocks, key_of)
        waiting: list[torch.Tensor] = []
        to_write = iter(mine)
        refused: OSError | None = None
        shard = next(to_write, None)
        for _ in range(rounds):
            self._look_around(self._run.accelerator.num_processes)
            if refused is None and (rows := next(computed, None)) is not None:
                waiting.append(rows)
                assert shard is not None
                if sum(map(len, waiting)) == len(shards.samples(shard)):
                    try:
                        shards.write(shard, waiting)
                    except OSError as error:
                        refused = error
                    waiting, shard = [], next(to_write, None)
        return refused

    def _look_around(self, blocks: int) -> None:
        run = self._run
        run.check_in("computing features")
        self._done = min(self._total, self._done + blocks)
        run.screen.step(self._title, self._done, self._total, "")

    def _rows(self, dataset: Views, blocks: Sequence[range], key_of: Callable[[int], Any]) -> Iterator[Any]:
        """Yield the rows of each block of images, in order."""
        if not blocks:
            return
        run = self._run
        keys = [[key_of(index) for index in block] for block in blocks]
        loader = loader_of(
            dataset,
            dataset.transform,
            keys,
            num_workers=run.num_workers,
            pin_memory=run.accelerator.device.type == "cuda",
            keep_workers=False,
        )
        for batch in run.watchdog.reading(loader):
            yield self._layout.rows(self._prefix(batch.to(run.accelerator.device).images))


def seconds_per_image(
    dataset: Views, keys: Sequence[Any], prefix: Prefix, device: torch.device, num_workers: int
) -> float:
    """Measure the seconds to read and decode an image and take it through the prefix, on the images of `keys`.

    Workers read while the prefix computes, so with workers the slower of the two counts; without, their sum.
    """
    begin = time.perf_counter()
    batch = collate([dataset[key] for key in keys], dataset.transform)
    reading = time.perf_counter() - begin
    images = batch.to(device).images
    prefix(images)  # warm-up: the first pass chooses algorithms
    _synchronize(device)
    begin = time.perf_counter()
    prefix(images)
    _synchronize(device)
    computing = time.perf_counter() - begin
    return (max(reading / num_workers, computing) if num_workers else reading + computing) / len(keys)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
