"""Looking at every image once before training: the main process reads them, all processes act alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from launcher.recipe.data.verifying import Broken, find_broken, on_bad_image_of, verified
from launcher.recipe.protocols import Splits
from launcher.recipe.recipe import Recipe
from launcher.training.launch import usable_cpus

if TYPE_CHECKING:
    from accelerate import Accelerator

TOLD_EVERY_SECONDS = 5.0


def without_broken_images(recipe: Recipe, splits: Splits, tell: Callable[[str], None]) -> Splits:
    """Splits whose every image can be decoded; `tell` hears how far it is. Raises UserError as `verified` does."""
    return verified(splits, _look(splits, tell), on_bad_image_of(recipe.data))


def checked_together(accelerator: Accelerator, tell: Callable[[str], None]) -> Callable[[Recipe, Splits], Splits]:
    """`without_broken_images` for several processes: one of them reads, all get the same verdict."""
    from accelerate.utils import broadcast_object_list

    def check(recipe: Recipe, splits: Splits) -> Splits:
        found: list[Broken | None] = [_look(splits, tell) if accelerator.is_main_process else None]
        broadcast_object_list(found)
        assert found[0] is not None
        return verified(splits, found[0], on_bad_image_of(recipe.data))

    return check


def _look(splits: Splits, tell: Callable[[str], None]) -> Broken:
    total = len(splits.train) + len(splits.val)
    begin = told = time.monotonic()

    def progress(done: int) -> None:
        nonlocal told
        if time.monotonic() - told > TOLD_EVERY_SECONDS:
            told = time.monotonic()
            left = (told - begin) / done * (total - done)
            tell(f"looking at every image once: {done:,} of {total:,}, {left:.0f} s left")

    return find_broken(splits, usable_cpus(), progress)
