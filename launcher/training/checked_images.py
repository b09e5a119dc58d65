"""The check of every image before training, or of the prepared copy that replaces them.

The main process reads the images, and all processes act on its findings alike.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.console import Reporter
from launcher.data.image_check import Broken, find_broken, on_bad_image_of, verified
from launcher.data.prepared import Copy, check_current, check_fits, read_copy, with_copy
from launcher.errors import UserError
from launcher.recipe.protocols import Splits
from launcher.recipe.recipe import Recipe
from launcher.training.launch import usable_cpus

if TYPE_CHECKING:
    from accelerate import Accelerator


def without_broken_images(
    recipe: Recipe, splits: Splits, report: Callable[[str], None], prepared: Path | None = None
) -> Splits:
    """Return splits of which every image can be decoded; `report` is called with the progress.

    With `prepared`, the images come from the prepared copy in that folder. Raise UserError as `verified` does, and if
    the copy is of other images or too small for the recipe.
    """
    if prepared is None:
        return verified(splits, _look(recipe, splits, report), on_bad_image_of(recipe.data))
    copy = _open(prepared, recipe, report)
    check_current(copy, splits)
    return with_copy(copy, recipe, splits)


def checked_together(
    accelerator: Accelerator, report: Callable[[str], None], prepared: Path | None = None
) -> Callable[[Recipe, Splits], Splits]:
    """Return a function like `without_broken_images` for several processes.

    The main process reads the images, and all processes get the same verdict.
    """
    from launcher.training.collectives import from_main, raised_on_all

    def check(recipe: Recipe, splits: Splits) -> Splits:
        broken = from_main(accelerator, lambda: _look(recipe, splits, report))
        return verified(splits, broken, on_bad_image_of(recipe.data))

    def check_prepared(recipe: Recipe, splits: Splits) -> Splits:
        assert prepared is not None
        with raised_on_all(accelerator):
            copy = _open(prepared, recipe, report)
            if accelerator.is_main_process:
                check_current(copy, splits)
        return with_copy(copy, recipe, splits)

    return check if prepared is None else check_prepared


def _open(folder: Path, recipe: Recipe, report: Callable[[str], None]) -> Copy:
    copy = read_copy(folder)
    check_fits(copy, recipe, recipe.backbone.preprocessing())
    report(
        f"images from the prepared copy {copy.folder}, with shorter sides of {copy.kept}: training images are "
        "resized once more than without it and cropped elsewhere, so what is learned differs slightly"
    )
    return copy


def _look(recipe: Recipe, splits: Splits, report: Callable[[str], None]) -> Broken:
    total = len(splits.train) + len(splits.val)
    reporter = Reporter(
        total,
        lambda done, left: f"looking at every image once: {done:,} of {total:,}, {left:.0f} s left",
        report,
        seconds=5.0,
    )
    try:
        resize_size = recipe.backbone.preprocessing().resize_size
    except UserError:  # reported when the backbone is built
        resize_size = None
    return find_broken(splits, usable_cpus(), reporter.update, resize_size)
