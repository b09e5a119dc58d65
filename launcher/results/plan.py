"""`plan`: what a recipe will do, on one screen, without training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from launcher.recipe.loading import LoadedRecipe
from launcher.recipe.protocols import Split, Splits
from launcher.recipe.recipe import Recipe
from launcher.recipe.serialization import to_json
from launcher.training.preparation import Prepared, prepare
from launcher.training.progress import phase_summary, phase_table
from launcher.training.verification import without_broken_images

SIZES_SAMPLED = 64
"""Images that are opened to tell the sizes."""
CLASSES_SHOWN = 20


def show(loaded: LoadedRecipe, *, num_processes: int, micro_batch_size: int | None) -> None:
    """Print the plan. Raises UserError with everything that is wrong with the recipe."""
    import torch

    console = Console(highlight=False)
    prepared = prepare(
        loaded.recipe,
        num_processes=num_processes,
        micro_batch_size=micro_batch_size,
        on_cpu=not torch.cuda.is_available(),
        check_images=lambda recipe, splits: without_broken_images(recipe, splits, lambda text: None),
    )
    console.print(recipe_table(loaded))
    console.print()
    console.print(data_table(prepared.splits, prepared))
    console.print()
    for resolved in prepared.phases:
        title, rows = phase_summary(prepared, resolved)
        console.print(phase_table(title, rows))
    console.print()
    for line in closing_lines(prepared):
        console.print(line, markup=False)


def recipe_table(loaded: LoadedRecipe) -> Table:
    """The resolved recipe, one part a line, as it is written in Python."""
    table = Table(title=f"recipe {loaded.path}", title_justify="left", title_style="bold", show_header=False, box=None)
    table.add_column(style="cyan")
    table.add_column()
    for name, value in to_json(loaded.recipe).items():
        if name not in ("type", "freeze_plan"):
            table.add_row(name, _as_call(value))
    return table


def data_table(splits: Splits, prepared: Prepared) -> Table:
    """Samples per class (or the range of each target) in both splits."""
    train, val = splits.train, splits.val
    title = (
        f"data: {len(train):,} training and {len(val):,} validation images"
        f"{f', {len(splits.skipped)} files left out' if splits.skipped else ''}; {image_sizes(train)}; "
        f"seen at {prepared.preprocessing.image_size} px"
    )
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2))
    kind = prepared.recipe.task.target_kind
    for column in {"class": ("class", "train", "val"), "labels": ("label", "train", "val")}.get(
        kind, ("target", "train mean", "min", "max", "val mean")
    ):
        table.add_column(column, justify="left" if column in ("class", "label", "target") else "right")
    if kind == "values":
        for column, name in enumerate(splits.names):
            values = train.targets[:, column]
            numbers = (values.mean(), values.min(), values.max(), val.targets[:, column].mean())
            table.add_row(name, *(f"{number:.4g}" for number in numbers))
        return table
    counts = [_counts(split, len(splits.names), kind) for split in (train, val)]
    for number, name in enumerate(splits.names[:CLASSES_SHOWN]):
        table.add_row(name, f"{counts[0][number]:,}", f"{counts[1][number]:,}")
    if len(splits.names) > CLASSES_SHOWN:
        rest = slice(CLASSES_SHOWN, None)
        more = f"... and {len(splits.names) - CLASSES_SHOWN} more"
        table.add_row(more, f"{counts[0][rest].sum():,}", f"{counts[1][rest].sum():,}")
    return table


def image_sizes(split: Split) -> str:
    """The smallest, the median and the largest of a sample of the images."""
    picked = np.linspace(0, len(split) - 1, min(SIZES_SAMPLED, len(split))).round().astype(int)
    sizes = sorted((split.images.read(int(index)).size for index in picked), key=lambda size: size[0] * size[1])
    smallest, median, largest = (f"{w}x{h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    if smallest == largest:
        return f"{smallest} px"
    return f"{smallest} to {largest} px, median {median}"


def closing_lines(prepared: Prepared) -> Iterable[str]:
    """Batch arithmetic, learning rate, weights, and what the plan cannot promise."""
    recipe, batching = prepared.recipe, prepared.batching
    steps = sum(resolved.steps for resolved in prepared.phases)
    images = len(prepared.splits.train) * sum(resolved.phase.epochs for resolved in prepared.phases)
    yield f"{batching}; {steps:,} optimizer steps, {images:,} training images in all"
    stated = getattr(recipe.optim, "lr_batch_size", None)
    how = "as stated" if stated is None else f"stated for a batch of {stated}, scaled to {recipe.batch_size}"
    yield f"learning rate {prepared.base_lr:.3g} ({how})"
    yield f"weights: {weights_source(recipe)}"
    for note in notes(prepared):
        yield f"note: {note}"


def weights_source(recipe: Recipe) -> str:
    source = getattr(recipe.backbone, "weights_source", None)
    if source is not None:
        return str(source())
    return f"as {type(recipe.backbone).__name__} builds them"


def notes(prepared: Prepared) -> Iterable[str]:
    """What makes splits of the batch differ, and settings that are legal and yet unusual."""
    from torch import nn

    recipe, model = prepared.recipe, prepared.model
    if any(p.phase.norm_statistics == "update" and p.norm_layers for p in prepared.phases):
        yield "norm_statistics='update': each process sees its own batch statistics, so weights depend on the split"
    droppers = sorted({type(m).__name__ for m in model.modules() if isinstance(m, nn.Module) and _drops(m)})
    if droppers:
        yield f"{', '.join(droppers)} where the network trains: drawn per process, so weights depend on the split"
    if getattr(recipe.backbone, "weights", "") is None:
        yield "backbone.weights=None: the network starts from random weights"
        if any(p.phase.norm_statistics == "keep" and p.norm_layers for p in prepared.phases):
            yield "BatchNorm keeps statistics that were never learned; norm_statistics='update' suits random weights"


def _drops(module: Any) -> bool:
    return any(
        isinstance(getattr(module, name, None), float) and getattr(module, name) > 0 for name in ("p", "drop_prob")
    )


def _counts(split: Split, num_names: int, kind: str) -> Any:
    if kind == "class":
        return np.bincount(split.targets, minlength=num_names)
    return split.targets.sum(axis=0).astype(int)


def _as_call(value: Any) -> str:
    if isinstance(value, dict) and "type" in value:
        inner = ", ".join(f"{key}={_as_call(item)}" for key, item in value.items() if key != "type")
        return f"{value['type'].split('.')[-1]}({inner})"
    return repr(value)
