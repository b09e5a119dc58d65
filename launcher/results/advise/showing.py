"""What was found, as tables and words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from launcher.results.advise.advise import Advice
from launcher.results.advise.probing import FINAL, Probe


def show(found: Sequence[Advice]) -> None:
    """Each backbone's boundaries, the order of the backbones, and a proposal for the best."""
    console = Console(highlight=False)
    for advice in found:
        _boundaries(console, advice)
    if len(found) > 1:
        table = Table(
            title="backbones, by the probe of their output", title_justify="left", box=None, padding=(0, 2, 0, 0)
        )
        for column in ("backbone", "best at", found[0].metric, "95 % interval", "parameters"):
            table.add_column(column, justify="left" if column in ("backbone", "best at") else "right")
        for advice in found:
            stage, probe = advice.best
            where = stage.name or "its output"
            table.add_row(advice.name, where, f"{probe.value:.3f}", _interval(probe), f"{advice.parameters:,}")
        console.print(table)
        console.print(f"intervals that overlap say that {found[0].measured_on:,} images cannot tell the two apart\n")
    best = found[0]
    console.print(f"proposal for {best.name}:", style="bold")
    for line in (*best.proposal.why, *best.findings):
        console.print(f"  {line}", soft_wrap=True)
    console.print("from launcher import Phase\n", markup=False)
    console.print(f"freeze_plan={best.proposal.plan},", markup=False, soft_wrap=True)


def _boundaries(console: Console, advice: Advice) -> None:
    title = (
        f"{advice.name}: {advice.parameters:,} parameters, {advice.image_size} px; heads in closed form from "
        f"{advice.trained_on:,} training images, measured on {advice.measured_on:,} validation images"
    )
    console.print(title, style="bold", soft_wrap=True)
    timed = not math.isnan(advice.costs[0].epoch)
    table = Table(box=None, padding=(0, 2, 0, 0))
    columns = ["features of", "width", advice.metric, "95 % interval"]
    columns += ["trains", "epoch", "stored", "MB"] if timed else []
    columns += ["gradient"] if advice.gradients else []
    for column in columns:
        table.add_column(column, justify="left" if column == "features of" else "right", no_wrap=True)
    for number, (stage, probe, cost) in enumerate(zip(advice.stages, advice.probes, advice.costs, strict=True)):
        cells = [stage.name or "its output", str(probe.width), f"{probe.value:.3f}", _interval(probe)]
        if timed:
            cells += [_short(cost.trained), f"{cost.epoch:.3g} s", f"{cost.first:.2g} + {cost.stored:.2g} s"]
            cells.append(f"{cost.bytes_per_image / 1e6:.1f}")
        if advice.gradients:
            cells.append(f"{advice.gradients[number]:.1g}" if stage.name != FINAL else "")
        table.add_row(*cells)
    console.print(table)
    if timed:
        console.print(
            "trains: parameters behind it and of the head; epoch: with fresh pictures, validation included; stored: "
            "features once + each epoch on them; MB: kept for an image until the backward pass; gradient: its norm "
            "over that of the weights, with the head in closed form",
            style="dim",
        )
    console.print()


def _short(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k" if count >= 1e3 else str(count)


def _interval(probe: Probe) -> str:
    return "" if math.isnan(probe.low) else f"{probe.low:.3f}-{probe.high:.3f}"
