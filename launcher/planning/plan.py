"""The command `plan`: what a recipe will do and what is wrong with it, on one screen, without training."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from launcher.assets.bundle import verify_assets
from launcher.console import to_stderr
from launcher.planning.allocations import allocation_seconds, time_lines
from launcher.planning.data import data_lines
from launcher.recipe.abilities import DescribesWeightsSource, ScalesWithBatchSize
from launcher.recipe.loading import LoadedRecipe
from launcher.recipe.protocols import Schedule
from launcher.recipe.recipe import Recipe
from launcher.recipe.serialization import to_json
from launcher.text import plural
from launcher.training.checked_images import without_broken_images
from launcher.training.notes import notes
from launcher.training.preflight import Findings, ResolvedPhase, examine
from launcher.training.progress import phase_summary, phase_table

WIDTH_IN_FILES = 120
"""The columns of the output if nothing says how wide it is shown."""
STEPS_LOOKED_AT = 10_000
"""The most steps of a phase at which the learning rate is looked up."""


def show(
    loaded: LoadedRecipe,
    *,
    num_processes: int,
    micro_batch_size: int | Literal["auto"] | None,
    prepared: Path | None = None,
    allocation: str | None = None,
) -> None:
    """Print the plan, as far as the recipe's mistakes allow. Raises UserError with all of these.

    `allocation` is the time of a cluster allocation, as Slurm takes it; if it is given, a few steps are timed, too.
    """
    verify_assets(loaded.recipe, to_stderr)
    findings = examine(
        loaded.recipe,
        num_processes=num_processes,
        micro_batch_size=micro_batch_size,
        on_cpu=not torch.cuda.is_available(),
        check_images=lambda recipe, splits: without_broken_images(recipe, splits, to_stderr, prepared),
    )
    if allocation is not None:
        with findings.problems.collected():
            allocation_seconds(allocation)
    console = _console()
    for title, body in sections(loaded, findings, console.width):
        console.print(Text(title, style="bold"))
        for part in body:
            _print(console, part)
    sys.stdout.flush()  # the errors come after it even if both go into one file
    findings.problems.raise_if_any()
    if allocation is not None:
        console.print(Text("time", style="bold"))
        for line in time_lines(findings.prepared(), allocation):
            _print(console, Text(line))


def sections(loaded: LoadedRecipe, findings: Findings, width: int) -> Iterable[tuple[str, list[Any]]]:
    """Yield the plan: titles, and what stands below each (texts or rich tables)."""
    yield f"recipe {loaded.path}", recipe_lines(loaded.recipe)
    if findings.splits:
        title, *lines = data_lines(findings.splits, loaded.recipe, findings.preprocessing, width - 2)
        yield title, [Text(line) for line in lines]
    if findings.model:
        yield "weights", [Text(weights_source(loaded.recipe))]
    for resolved in findings.phases:
        title, rows = phase_summary(resolved, len(loaded.recipe.freeze_plan))
        body: list[Any] = [phase_table(rows)]
        if findings.splits and findings.batching:
            body.append(Text(learning_rates(loaded.recipe, resolved)))
        yield title, body
    if findings.batching:
        yield "batches", [Text(line) for line in batch_lines(findings)]
    texts = list(notes(findings))
    if texts:
        yield "notes", [Text(f"- {note}") for note in texts]


def recipe_lines(recipe: Recipe) -> list[Text]:
    """Return the resolved recipe as it is written in Python: one line per part, and the plain values together."""
    lines, plain = [], []
    for name, value in to_json(recipe).items():
        if isinstance(value, dict):
            lines.append(Text.assemble((f"{name}=", "cyan"), _in_python(value)))
        elif name not in ("type", "freeze_plan"):
            plain.append(f"{name}={_in_python(value)}")
    return [*lines, Text(", ".join(plain))]


def batch_lines(findings: Findings) -> Iterable[str]:
    """Yield lines on how the batch is divided, and on the number of steps."""
    recipe, batching = findings.recipe, findings.batching
    assert batching is not None
    yield str(batching)
    if not findings.splits:
        return
    samples = len(findings.splits.train)
    epochs, steps = sum(phase.epochs for phase in recipe.freeze_plan), batching.steps_per_epoch(samples)
    last = samples - (steps - 1) * recipe.batch_size
    uneven = f", the last one of {plural(last, 'image', spec='')}" if last != recipe.batch_size else ""
    yield f"{plural(steps, 'step')} per epoch{uneven}"
    yield f"{plural(epochs * steps, 'step')} in all, over {plural(epochs * samples, 'training image')}"


def learning_rates(recipe: Recipe, resolved: ResolvedPhase) -> str:
    """Describe the learning rate over a phase, and the base rate that it follows from."""
    base, schedule = recipe.optim.base_lr(recipe.batch_size), recipe.schedule
    stated = recipe.optim.lr_batch_size if isinstance(recipe.optim, ScalesWithBatchSize) else None
    how = f"for a batch of {stated}, scaled to {recipe.batch_size}" if stated else "as stated"
    rates = [(base * scale, step) for scale, step in _scales(schedule, resolved)]
    first, last, (peak, peak_step) = rates[0][0], rates[-1][0], max(rates, key=lambda rate: rate[0])
    if first == last == peak:
        course = "throughout"
    else:
        places = [f"{first:.3g} at step 1"] if peak_step else []
        places += [f"{peak:.3g} at step {peak_step + 1:,}"]
        places += [f"{last:.3g} at step {resolved.steps:,}"] if peak_step != resolved.steps - 1 else []
        course = ", ".join(places)
    return f"lr {base:.3g} ({how}) by {type(schedule).__name__}: {course}"


def _scales(schedule: Schedule, resolved: ResolvedPhase) -> list[tuple[float, int]]:
    stride = -(-resolved.steps // STEPS_LOOKED_AT)
    looked_at = sorted({*range(0, resolved.steps, stride), resolved.steps - 1})
    return [(schedule.scale(step, resolved.steps, resolved.steps_per_epoch), step) for step in looked_at]


def weights_source(recipe: Recipe) -> str:
    """Say where the backbone's weights come from."""
    if isinstance(recipe.backbone, DescribesWeightsSource):
        return str(recipe.backbone.weights_source())
    return f"as {type(recipe.backbone).__name__}.build() makes them"


def _print(console: Console, part: Any) -> None:
    """Print a text or a table, indented and without trailing spaces; a path is never broken."""
    width = console.width - 2
    if isinstance(part, Text):
        longest = max(map(cell_len, part.plain.split()), default=0)
        lines = list(part.wrap(console, max(width, longest)))
    else:
        with console.capture() as captured:
            console.print(part, width=width)
        lines = [Text.from_ansi(line) for line in captured.get().splitlines()]
    for line in lines:
        line.rstrip()
        console.print(Text("  ") + line, soft_wrap=True)


def _console() -> Console:
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console = Console(highlight=False, emoji=False, width=WIDTH_IN_FILES)
    return console


def _in_python(value: Any) -> str:
    if isinstance(value, dict) and "type" in value:
        inner = ", ".join(f"{key}={_in_python(item)}" for key, item in value.items() if key != "type")
        return f"{value['type'].rpartition('.')[2]}({inner})"
    if isinstance(value, list):
        return f"({', '.join(map(_in_python, value))}{',' if len(value) == 1 else ''})"
    return repr(value)
