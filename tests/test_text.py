"""Counts read well, and `plural` alone makes them so."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from commands import ROOT
from launcher.text import plural

PACKAGE = ROOT / "launcher"

NOUNS = (
    *("allocations", "boundaries", "bytes", "cells", "checkpoints", "classes", "columns", "cores", "epochs"),
    *("evaluations", "files", "folders", "GPUs", "groups", "images", "items", "jobs", "labels", "layers", "lines"),
    *(
        "lives",
        "attempts",
        "minutes",
        "mistakes",
        "modules",
        "moments",
        "nodes",
        "numbers",
        "others",
        "outputs",
        "pairs",
    ),
    *("parameters", "parts", "phases", "pictures", "processes", "restarts", "rows", "runs", "samples", "seconds"),
    *("seeds", "starts", "steps", "tables", "targets", "tasks", "tensors", "thresholds", "trials", "values", "views"),
    *("workers",),
)

BEFORE = (
    *("augmented", "class", "data", "empty", "generated", "more", "other", "smallest", "such", "test", "training"),
    *("validation", "waiting"),
)
"""What may stand between a number and its noun."""

BEHIND_A_NUMBER = re.compile(rf" (?:(?:{'|'.join(BEFORE)}) )*(?:{'|'.join(NOUNS)})\b(?!/)")
"""Not a rate: images/s."""

NEVER_ONE = {
    "cli/report.py: {len(runs)} runs": "said of more than one",
    "cluster/attempts.py: {stood} attempts": "ATTEMPTS_WITHOUT_PROGRESS at least",
    "cluster/processes.py: {_num_devices()} GPUs": "more than the processes on the node",
    "cluster/processes.py: {asked} processes": "one process is not asked for",
    "cluster/processes.py: {command} runs": "a verb",
    "cluster/processes.py: {num_local} processes": "local_rank is one at least",
    "cluster/processes.py: {num_processes} processes": "one process need not meet others",
    "cluster/processes.py: {num_tasks} tasks": "said of more than one",
    "cluster/processes.py: {tasks} tasks": "said of more than one",
    "cluster/rendezvous.py: {count} processes": "one process need not meet others",
    "cluster/rendezvous.py: {self._count} processes": "one process need not meet others",
    "cluster/slurm_ranks.py: {num_tasks} tasks": "said of more than one",
    "cluster/snapshot.py: {len(chosen)} files": "more than MOST_FILES",
    "data/arrow_columns.py: {len(named)} columns": "said of none and of several",
    "data/csv.py: {len(columns)} columns": "said of none and of several",
    "data/csv.py: {sum(map(len, repeated.values()))} rows": "two at least for each image",
    "data/decoding.py: {status.st_size} bytes": "more than MOST_BYTES",
    "data/folder_layout.py: {len(first)} folders": "said of two or more",
    "data/folder_layout.py: {len(names)} class folders": "said of two or more",
    "data/prepared.py: {what} images": "a word",
    "data/split.py: {len(targets)} images": "said of more than one",
    "export/sample_images.py: {MOST} generated pictures": "a constant",
    "export/templates/card.md.j2: {{ scores | length }} classes": "more than 20",
    "inference/labelled_data.py: {len(tables)} tables": "said of none and of several",
    "init/networks.py: {images} images": "LARGE_DATA at least",
    "init/rules.py: {amount} images": "MANY at least",
    "init/rules.py: {epochs} epochs": "ten at least",
    "init/rules.py: {machine.gpus} GPUs": "said of more than one",
    "init/rules.py: {probe} epochs": "three at least",
    "metrics/calibration.py: {count} images": "FEWEST at least",
    "planning/data.py: {half} smallest classes": "half of the rows that are shown",
    "report/sections/side_by_side.py: {len(runs)} runs": "one run is not compared",
    "report/templates/confusion.html.j2: {{ all_pairs | n }} pairs": "more than are shown",
    "report/templates/page.html.j2: {{ runs | length }} runs": "one run is named",
    "training/batch_arithmetic.py: {num_processes} processes": "one process shares nothing",
    "training/feature_cache/populate.py: {images} images": "a sum in words, and 1 is asked for beside it",
    "training/feature_cache/populate.py: {len(views)} views": "said of more than one",
    "training/out_of_memory.py: {run.parts} parts": "twice as many as before",
    "training/preflight.py: {name} images": "a word",
    "training/progress.py: {len(children)} modules": "more than four",
    "training/worker_limits.py: {allowed} files": "a running interpreter has more of them open",
    "training/worker_limits.py: {num_local_processes} processes": "said of more than one",
    "tuning/lr_finder/range_test.py: {len(lrs)} steps": "ten at least",
    "tuning/lr_finder/summary.py: {trace.steps} steps": "ten at least",
    "tuning/sweep/sweep.py: {stood} starts": "ATTEMPTS_WITHOUT_PROGRESS at least",
    "tuning/sweep/table.py: {alike} trials": "one is the next trial, without a number",
}
"""Values right before a plural that need no singular, and why."""


def f_strings(text: str) -> Iterator[str]:
    """Values that stand right before a plural, with it."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, words in zip(node.values, node.values[1:], strict=False):
            if not isinstance(value, ast.FormattedValue) or not isinstance(words, ast.Constant):
                continue
            is_word = isinstance(value.value, ast.IfExp) and isinstance(value.value.body, ast.Constant)
            if not is_word and (found := BEHIND_A_NUMBER.match(str(words.value))):
                yield f"{{{ast.unparse(value.value)}}}{found[0]}"


def template(text: str) -> Iterator[str]:
    for value, words in re.findall(r"\{\{ *([^{}]*?) *\}\}([^{}<]*)", text):
        if found := BEHIND_A_NUMBER.match(words):
            yield f"{{{{ {value} }}}}{found[0]}"


def endings_by_hand(text: str) -> Iterator[str]:
    """Conditions between an ending and none."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.IfExp):
            ends = {end.value for end in (node.body, node.orelse) if isinstance(end, ast.Constant)}
            if "" in ends and ends & {"s", "es"}:
                yield ast.unparse(node)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (plural(0, "image"), "0 images"),
        (plural(1, "image"), "1 image"),
        (plural(2, "image"), "2 images"),
        (plural(1_281_167, "image"), "1,281,167 images"),
        (plural(1024, "image", spec=""), "1024 images"),
        (plural(1, "class", "classes"), "1 class"),
        (plural(1000, "class", "classes"), "1,000 classes"),
        (plural(1, "file is", "files are"), "1 file is"),
        (plural(0, "file is", "files are"), "0 files are"),
    ],
)
def test_a_count_and_its_noun_agree(text: str, wanted: str) -> None:
    assert text == wanted


@pytest.mark.slow
def test_every_count_that_is_shown_can_be_one() -> None:
    found = {
        f"{file.relative_to(PACKAGE)}: {count}"
        for read, files in ((f_strings, PACKAGE.rglob("*.py")), (template, PACKAGE.rglob("*.j2")))
        for file in files
        for count in read(file.read_text(encoding="utf-8"))
    }
    assert not found - NEVER_ONE.keys(), "use launcher.text.plural, or say in NEVER_ONE why it is never one"
    assert not NEVER_ONE.keys() - found, "no longer there"


@pytest.mark.slow
def test_no_ending_is_made_by_hand() -> None:
    found = [
        f"{file.relative_to(PACKAGE)}: {ending}"
        for file in PACKAGE.rglob("*.py")
        for ending in endings_by_hand(file.read_text(encoding="utf-8"))
    ]
    assert not found, "use launcher.text.plural"


def test_a_count_that_lacks_its_singular_is_found() -> None:
    assert list(f_strings("f'{len(a):,} validation images, {b} of {c} files'")) == [
        "{len(a)} validation images",
        "{c} files",
    ]
    assert not list(f_strings("f'{plural(a, \"image\")} of {rate:.0f} images/s, {name}: images'"))
    assert list(template('<p>{{ a | length | n }} pictures, {{ b | plural("picture") }}</p>')) == [
        "{{ a | length | n }} pictures"
    ]
    assert list(endings_by_hand('f\'{n} step{"s" if n > 1 else ""}\'')) == ["'s' if n > 1 else ''"]
