"""The confusion matrix of a classification, and the images in each of its cells."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from launcher.report.facts import Facts
from launcher.report.formats import percent
from launcher.report.page import Section
from launcher.text import plural

LARGEST_MATRIX = 30
"""The most classes for which the matrix is drawn; for more, only the most confused pairs are listed."""
PAIRS = 24
IN_CELL = 8
"""Thumbnails of a cell."""
THUMBNAILS = 360
"""Thumbnails of all cells together."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix."""

    key: str
    count: int
    shade: float
    """0 to 1: the share of the row's images, or for mistakes its square root, so that even a few are seen."""
    right: bool
    label: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """A class, another one that it is taken for, and the number of such images."""

    key: str
    target: str
    prediction: str
    count: int
    share: str


def section(facts: Facts) -> Section | None:
    """Build the section, or return None for a run that is not a classification."""
    samples = facts.samples
    if samples is None or samples.kind != "classification":
        return None
    classes, size = samples.classes, len(samples.classes)
    members: dict[tuple[int, int], list[int]] = {}
    confidence = samples.probabilities.max(1)
    # Mistakes begin with the most confident one, correct predictions with the least confident one.
    right = samples.targets == samples.predictions
    for index in np.argsort(np.where(right, confidence, -confidence), kind="stable").tolist():
        members.setdefault((int(samples.targets[index]), int(samples.predictions[index])), []).append(index)
    support = np.bincount(samples.targets, minlength=size)
    wrong = sorted((pair for pair in members if pair[0] != pair[1]), key=lambda pair: (-len(members[pair]), pair))
    pairs = [
        Pair(
            f"{t}-{p}",
            classes[t],
            classes[p],
            len(members[t, p]),
            f"{percent(len(members[t, p]) / support[t])} % of {classes[t]}",
        )
        for t, p in wrong[:PAIRS]
    ]
    drawn = size <= LARGEST_MATRIX
    rows = [[_cell(t, p, members, support, classes) for p in range(size)] for t in range(size)] if drawn else []
    open_cells = [*wrong, *(pair for pair in members if pair[0] == pair[1])] if drawn else wrong[:PAIRS]
    return Section(
        "confusion",
        "Confusion",
        {
            "classes": classes,
            "rows": rows,
            "pairs": pairs,
            "all_pairs": len(wrong),
            "mistakes": int((~right).sum()),
            "data": _data(facts, open_cells, members, confidence),
            "starts_at": pairs[0].key if pairs else "",
        },
    )


def _cell(t: int, p: int, members: dict[tuple[int, int], list[int]], support: Any, classes: tuple[str, ...]) -> Cell:
    number = len(members.get((t, p), ()))
    label = f"{classes[t]} taken for {classes[p]}" if t != p else f"{classes[t]}, right"
    share = number / max(1, int(support[t]))
    shade = round(share if t == p else share**0.5, 3)
    return Cell(f"{t}-{p}", number, shade, t == p, f"{label}: {plural(number, 'image')}")


def _data(
    facts: Facts, cells: list[tuple[int, int]], members: dict[tuple[int, int], list[int]], confidence: Any
) -> dict[str, Any]:
    """Return the data for the script: the images shown in each cell, and the name and thumbnail of each image."""
    samples = facts.samples
    assert samples is not None
    chosen: dict[tuple[int, int], list[int]] = {cell: [] for cell in cells}
    taken = 0
    for place in range(IN_CELL):  # each cell has its first image before any has its second
        for cell in cells:
            if place < len(members[cell]) and taken < THUMBNAILS:
                chosen[cell].append(members[cell][place])
                taken += 1
    images = {}
    for indices in chosen.values():
        for index in indices:
            thumbnail = facts.thumbnails.of(index)
            images[index] = [
                samples.short(index),
                f"{percent(float(confidence[index]))} %",
                thumbnail.uri if thumbnail else "",
                int(bool(thumbnail and thumbnail.is_small)),
            ]
    content = {}
    for (t, p), indices in chosen.items():
        title = f"{samples.classes[t]} taken for {samples.classes[p]}" if t != p else f"{samples.classes[t]}, right"
        content[f"{t}-{p}"] = {"title": title, "total": len(members[t, p]), "images": indices}
    return {"cells": content, "images": images, "folder": samples.folder}
