"""The plan's lines on the data: images per class or the range of each target, sizes, and files that are left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from launcher.inference.labelled_data import test_line
from launcher.recipe.protocols import Preprocessing, Split, Splits
from launcher.recipe.recipe import Recipe
from launcher.text import level, one_line, plural

SIZES_SAMPLED = 64
"""The most images that are opened to see the sizes."""
ROWS_SHOWN = 20
"""The most lines for the classes; if they need more, only the largest and the smallest are shown."""
NAME_SHOWN = 28
"""The most characters of a class name."""
SKIPPED_SHOWN = 3


def data_lines(splits: Splits, recipe: Recipe, preprocessing: Preprocessing | None, width: int) -> list[str]:
    """Return a title, then lines that are no wider than `width`, as far as names allow."""
    kind = recipe.task.target_kind
    outputs = {"class": ("class", "classes"), "labels": ("label",), "values": ("target",)}[kind]
    seen = f"; the backbone sees {preprocessing.image_size}x{preprocessing.image_size}" if preprocessing else ""
    lines = [
        f"data: {len(splits.train):,} training and {plural(len(splits.val), 'validation image')}, "
        f"{plural(len(splits.names), *outputs)}",
        f"images {image_sizes(splits.train)}{seen}",
    ]
    if kind == "values":
        lines += target_rows(splits)
    else:
        counts = [_counts(split, len(splits.names)) for split in (splits.train, splits.val)]
        lines += class_rows(splits.names, counts[0], counts[1], width)
    if test := test_line(recipe.data, kind, splits):
        lines.append(test)
    if splits.skipped:
        unlisted = len(splits.skipped) - SKIPPED_SHOWN
        lines.append(f"left out, {len(splits.skipped):,} in all:")
        lines += [f"  {name}" for name in splits.skipped[:SKIPPED_SHOWN]]
        lines += [f"  and {unlisted:,} more"] if unlisted > 0 else []
    return lines


def image_sizes(split: Split) -> str:
    """Describe the smallest, median and largest size in a sample of the images, as they are stored."""
    picked = np.linspace(0, len(split) - 1, min(SIZES_SAMPLED, len(split))).round().astype(int)
    sizes = []
    for index in picked:
        try:
            sizes.append(split.images.read(int(index)).size)
        except Exception:  # noqa: S112 - a broken image is reported, by name, by the check of all images
            continue
    if not sizes:
        return "of unknown size"
    sizes.sort(key=lambda size: size[0] * size[1])
    smallest, median, largest = (f"{w}x{h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    if smallest == largest:
        return f"of {smallest} pixels"
    sample = "" if len(sizes) == len(split) else f" (of {len(sizes)} looked at)"
    return f"of {smallest} to {largest} pixels, median {median}{sample}"


def class_rows(names: Sequence[str], train: npt.NDArray[np.int64], val: npt.NDArray[np.int64], width: int) -> list[str]:
    """Return lines with the training and validation images of each class, in as many columns as fit."""
    name_width = min(NAME_SHOWN, max(5, *(len(name) for name in names)))
    cells = [
        f"{_cut(name):<{name_width}} {f'{ours:,}':>7} {f'{theirs:,}':>6}"
        for name, ours, theirs in zip(names, train, val, strict=True)
    ]
    header = f"{'':<{name_width}} {'train':>7} {'val':>6}"
    columns = max(1, (width + 3) // (len(header) + 3))
    intro = []
    if len(cells) > ROWS_SHOWN * columns:
        order = np.argsort(-train, kind="stable")
        half = ROWS_SHOWN * columns // 2
        chosen = [*order[:half], *order[-half:]]
        intro = [
            f"training images per class: {train.min():,} to {train.max():,}, median {np.median(train):,.0f}; "
            f"the {half} largest and the {half} smallest classes:"
        ]
        cells = [cells[index] for index in chosen]
    columns = min(columns, -(-len(cells) // min(len(cells), ROWS_SHOWN)))
    height = -(-len(cells) // columns)
    rows = ["   ".join(cells[row::height]) for row in range(height)]
    return [*intro, "   ".join([header] * columns), *rows]


def target_rows(splits: Splits) -> list[str]:
    """Return lines with the mean and the range of each target."""
    rows = [("", "train mean", "min", "max", "val mean")]
    for column, name in enumerate(splits.names):
        ours, theirs = splits.train.targets[:, column], splits.val.targets[:, column]
        numbers = (ours.mean(), ours.min(), ours.max(), theirs.mean())
        rows.append((_cut(name), *(level(float(number), float(ours.std())) for number in numbers)))  # type: ignore[arg-type]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        f"{row[0]:<{widths[0]}}  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


def _cut(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= NAME_SHOWN else f"{name[: NAME_SHOWN - 3]}..."


def _counts(split: Split, num_names: int) -> npt.NDArray[np.int64]:
    """Return the number of images of each class or label."""
    if split.targets.ndim == 1:
        return np.bincount(split.targets, minlength=num_names).astype(np.int64)
    return np.asarray(split.targets.sum(axis=0).round(), dtype=np.int64)
