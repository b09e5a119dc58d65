"""The data: images of each class, their sizes, and the files that were left out."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np

from launcher.recipe.protocols import ImageSource
from launcher.report.facts import Facts
from launcher.report.page import Section
from launcher.report.thumbnails import size_of
from launcher.text import level, plural

SHOWN_AT_ONCE = 20
SIZES_SAMPLED = 64
SKIPPED_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Row:
    """The number of images of a class or label."""

    name: str
    train: int
    val: int
    share: float
    """The training images, in per cent of those of the largest class."""


def section(facts: Facts) -> Section:
    """Build the section."""
    data = facts.plan.get("data", {})
    identity = facts.environment.get("data", {})
    rows: list[Row] = []
    trained, validated = data.get("train", {}).get("of_each"), data.get("val", {}).get("of_each")
    if trained and validated and len(trained) == len(facts.names):
        most = max(trained) or 1
        rows = [
            Row(name, ours, theirs, round(100 * ours / most, 1))
            for name, ours, theirs in zip(facts.names, trained, validated, strict=True)
        ]
        rows.sort(key=lambda row: -row.train)
    ends = SHOWN_AT_ONCE if len(rows) <= SHOWN_AT_ONCE + 4 else SHOWN_AT_ONCE // 2
    listed = rows if len(rows) <= SHOWN_AT_ONCE + 4 else [*rows[:ends], *rows[-ends:]]
    lines = [("training images", f"{identity.get('train_samples', 0):,}")]
    lines.append(("validation images", f"{identity.get('val_samples', 0):,}"))
    if rows:
        least = max(1, min(row.train for row in rows))
        lines.append(("largest to smallest class", f"{max(row.train for row in rows) / least:.3g} to 1"))
    lines += _sizes(facts)
    if data.get("image_size"):
        lines.append(("the network sees", f"{data['image_size']} × {data['image_size']} pixels"))
    return Section(
        "data",
        "Data",
        {
            "lines": lines,
            "rows": listed,
            "hidden": len(rows) - len(listed),
            "what": {"labels": "label"}.get(str(data.get("target_kind")), "class"),
            "targets": _targets(facts, data),
            "skipped": facts.skipped[:SKIPPED_SHOWN],
            "more_skipped": max(0, len(facts.skipped) - SKIPPED_SHOWN),
            "all_skipped": plural(len(facts.skipped), "file"),
        },
    )


def _targets(facts: Facts, data: dict[str, Any]) -> list[list[str]]:
    """Return the quartiles of each target of a regression, in training and validation."""
    ours, theirs = data.get("train", {}).get("quartiles"), data.get("val", {}).get("quartiles")
    if not ours or not theirs or len(ours) != len(facts.names):
        return []
    rows = []
    for name, of_train, of_val in zip(facts.names, ours, theirs, strict=True):
        spread = max(of_train) - min(of_train)
        rows.append([name, "training", *(level(value, spread) for value in of_train)])
        rows.append(["", "validation", *(level(value, spread) for value in of_val)])
    return rows


def _sizes(facts: Facts) -> list[tuple[str, str]]:
    """Return a line on the sizes of a sample of the training images, as they are stored."""
    if facts.splits is None:
        return []
    images: ImageSource = facts.splits.train.images
    total = len(facts.splits.train)
    sizes: list[tuple[int, int]] = []
    for index in np.linspace(0, total - 1, min(SIZES_SAMPLED, total)).round().astype(int).tolist():
        with contextlib.suppress(Exception):  # moved or broken since; the others tell the sizes
            sizes.append(size_of(images, index))
    if not sizes:
        return []
    sizes.sort(key=lambda size: size[0] * size[1])
    smallest, median, largest = (f"{w} × {h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    if smallest == largest:
        return [("image size", f"{smallest} pixels")]
    sample = "" if len(sizes) == total else f", of {len(sizes)} looked at"
    return [("image sizes", f"{smallest} to {largest}, median {median} pixels{sample}")]
