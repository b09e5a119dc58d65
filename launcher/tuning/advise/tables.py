"""The command `advise`: the advice, as tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.console import Console

from launcher.console import show_table
from launcher.recipe.recipe import Recipe
from launcher.text import plural
from launcher.training.launch import Launch
from launcher.tuning.advise.advise import Advice, advise, recipes_for
from launcher.tuning.advise.probes import FINAL, Probe


def show(
    recipe: Recipe,
    backbones: Sequence[str],
    most_images: int,
    launch: Launch,
    report: Callable[[str], None],
    costs: bool,
) -> None:
    """Print each backbone's boundaries, the order of the backbones, and a proposal for the best."""
    all_advice = advise(recipes_for(recipe, backbones), most_images, launch, report, costs=costs)
    console = Console(highlight=False)
    for advice in all_advice:
        _boundaries(console, advice)
    if len(all_advice) > 1:
        rows = [["backbone", "best at", all_advice[0].metric, "95 % interval", "parameters"]]
        for advice in all_advice:
            stage, probe = advice.best
            where = stage.name or "its output"
            rows.append([advice.name, where, f"{probe.value:.3f}", _interval(probe), f"{advice.parameters:,}"])
        console.print("backbones, by the best of their probes", style="italic")
        show_table(rows, console, left=(0, 1))
        console.print(
            f"intervals that overlap say that {plural(all_advice[0].measured_on, 'image')} cannot tell the two apart\n"
        )
    best = all_advice[0]
    console.print(f"proposal for {best.name}:", style="bold")
    for line in (*best.proposal.why, *best.findings):
        console.print(f"  {line}", soft_wrap=True)
    console.print("from launcher import Phase\n", markup=False)
    console.print(f"freeze_plan={best.proposal.plan},", markup=False, soft_wrap=True)


def _boundaries(console: Console, advice: Advice) -> None:
    title = (
        f"{advice.name}: {plural(advice.parameters, 'parameter')}, {advice.image_size} px; heads in closed form from "
        f"{plural(advice.trained_on, 'training image')}, measured on "
        f"{plural(advice.measured_on, 'validation image')}"
    )
    console.print(title, style="bold", soft_wrap=True)
    names = [stage.name or "its output" for stage in advice.stages]
    rows = [["features of", "width", advice.metric, "95 % interval", *["gradient"] * bool(advice.gradients)]]
    for number, (name, probe) in enumerate(zip(names, advice.probes, strict=True)):
        cells = [name, str(probe.width), f"{probe.value:.3f}", _interval(probe)]
        if advice.gradients:
            cells.append(f"{advice.gradients[number]:.1g}" if advice.stages[number].name != FINAL else "")
        rows.append(cells)
    show_table(rows, console)
    if advice.gradients:
        console.print("gradient: its norm over that of the weights, with the head in closed form", style="dim")
    if not math.isnan(advice.costs[0].epoch):
        costs = [["training behind", "parameters", "an epoch", "with stored features", "MB an image"]]
        for name, cost in zip(names, advice.costs, strict=True):
            stored = f"{cost.first:.2g} s, then {cost.stored:.2g} s"
            costs.append(
                [name, _short(cost.trained), f"{cost.epoch:.3g} s", stored, f"{cost.bytes_per_image / 1e6:.1f}"]
            )
        console.print()
        show_table(costs, console)
        console.print(
            "parameters: with the head's; an epoch: with fresh pictures, validation included; with stored features: to "
            "compute them once, then each epoch; MB an image: kept until the backward pass",
            style="dim",
        )
    console.print()


def _short(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k" if count >= 1e3 else str(count)


def _interval(probe: Probe) -> str:
    return "" if math.isnan(probe.low) else f"{probe.low:.3f}-{probe.high:.3f}"
