"""All steps from what the user names to a recipe file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from launcher.data.names import notes_of_names
from launcher.errors import Problems, UserError
from launcher.files import expanded
from launcher.init.findings import DataFindings
from launcher.init.folders import folder
from launcher.init.hub import data_set
from launcher.init.images import look_at
from launcher.init.machine import Machine, machine
from launcher.init.recipe_text import check_target, recipe_text, write
from launcher.init.rules import decide
from launcher.init.summary import show, targets_shown
from launcher.init.tables import table
from launcher.recipe.protocols import TargetKind
from launcher.text import plural

KINDS: dict[str, TargetKind] = {"classification": "class", "multilabel": "labels", "regression": "values"}


def make_recipe(
    source: str,
    to: Path,
    *,
    overwrite: bool,
    name: str | None = None,
    label: Sequence[str] = (),
    task: Literal["classification", "multilabel", "regression"] | None = None,
    hardware: Literal["here", "cpu", "gpu"] = "here",
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Look at `source` (a folder, a table, or a data set's name on the hub), write a recipe for it to `to`; show both.

    `name` is the configuration of a hub data set that has several. `label` names the columns of targets and `task` says
    what they are, if that cannot be found out. `hardware` is the machine to choose for. Raises UserError, and then
    nothing is written.
    """
    problems = Problems()
    path = to
    with problems.collected():
        path = check_target(to, overwrite)
    with problems.collected():
        data = look_for(source, name, report, label, KINDS[task] if task else None)
    problems.raise_if_any()
    images = look_at(data.splits)
    remarks = (*data.remarks, *data.splits.notes, *images.notes)
    if data.target_kind != "values":
        remarks = (*remarks, *notes_of_names(data.splits.names))
    data = dataclasses.replace(data, remarks=remarks)
    here = machine(hardware)
    decisions = decide(data, images, here)
    file = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    words = [source, *(["--name", name] if name else [])]
    words += [word for column in label for word in ("--label", column)] + (["--task", task] if task else [])
    words += ["--for", hardware] if hardware != "here" else []
    write(recipe_text(decisions, summary(data, here), file, words, here.start()), path, overwrite)
    show(data, images, here, decisions, file, Console(highlight=False, emoji=False))


def look_for(
    source: str,
    name: str | None,
    report: Callable[[str], None],
    label: Sequence[str] = (),
    kind: TargetKind | None = None,
) -> DataFindings:
    """Find the data that `source` names. Raises UserError if it is neither on this disk nor the name of a data set."""
    path = expanded(source)
    if not source.strip():
        raise UserError("init: no data named; give a folder of images, a table, or the name of a data set (owner/name)")
    if path.exists():
        if name is not None:
            raise UserError(f"--name {name}: is for data sets of the Hugging Face hub; {source} is on this disk")
        return folder(path, label, kind) if path.is_dir() else table(path, None, label, kind)
    looks_like_path = (
        source.startswith(("/", ".", "~")) or source.count("/") != 1 or path.suffix or source.endswith("/")
    )
    if looks_like_path:
        raise UserError(
            f"{source}: no such folder or file in {Path.cwd()}; data sets of the Hugging Face hub are named owner/name"
        )
    report(f"{source}: loading the data set, as training would (from the hub, or from this machine's cache)")
    return data_set(source, f"data set {source} of the Hugging Face hub", name, label, kind)


def summary(data: DataFindings, here: Machine) -> str:
    """Return a sentence on the data and the machine that the recipe was written for."""
    return (
        f"For the {data.title}: {len(data.splits.train):,} training and "
        f"{plural(len(data.splits.val), 'validation image')}, {targets_shown(data)}; chosen for a machine "
        f"with {here}."
    )
