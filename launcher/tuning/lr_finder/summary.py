"""The command `find-lr`: its tests, and their curves, suggestions, and the override to use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from launcher.files import write_atomic
from launcher.recipe.loading import LoadedRecipe
from launcher.recipe.recipe import Recipe
from launcher.training.launch import Launch
from launcher.tuning.lr_finder.curve import as_svg, as_text
from launcher.tuning.lr_finder.range_test import range_test
from launcher.tuning.lr_finder.suggestions import Suggestions, rounded, suggest
from launcher.tuning.lr_finder.trace import Range, Trace

STARTS = {
    "recipe": "",
    "closed form": "started from the pretrained backbone and a head in closed form, as the phases before it are not "
    "trained here; it fits the training images better than a trained one, so the rate is a cautious one",
    "new head": "started from the pretrained backbone and a new head, as the phases before it are not trained here: in "
    "the run its rate may have to be lower",
}
SAME = 1.5
"""Ratio of recommended rates below which they count as equal."""


def find_and_show(loaded: LoadedRecipe, launch: Launch, rates: Range, numbers: Sequence[int], svg: Path | None) -> bool:
    """Run `range_test`, print the tests, and draw the curves into `svg`, if it is given.

    Return whether there is a rate to recommend for each phase; processes other than the main one return True.
    """
    traces = range_test(loaded, launch, rates, numbers)
    if traces is None:
        return True
    results = [(trace, suggest(trace)) for trace in traces]
    all_found = show(results, loaded.recipe, Console(highlight=False, soft_wrap=True))
    if svg is not None:
        write_atomic(svg, as_svg(results, f"Learning rates of {loaded.path.name}"))
        print(f"curves: {svg}")
    return all_found


def show(results: Sequence[tuple[Trace, Suggestions]], recipe: Recipe, console: Console) -> bool:
    """Print the tests, and return whether there is a rate to recommend for each phase."""
    # ASCII only, if the output goes to a file or a pipe, or cannot show other characters.
    plain = not console.is_terminal or not console.encoding.lower().startswith("utf")
    for trace, suggestions in results:
        console.print()
        console.print(f"phase {trace.number + 1} {trace.phase}", style="bold", markup=False)
        for line in as_text(trace, suggestions, plain=plain):
            console.print(line, markup=False)
        for line in lines_of(trace, suggestions, recipe):
            console.print(f"  {line}", markup=False)
    console.print()
    for line in overrides(results, recipe):
        console.print(line, markup=False)
    return all(suggestions.recommended is not None for _, suggestions in results)


def lines_of(trace: Trace, suggestions: Suggestions, recipe: Recipe) -> list[str]:
    """Return the lines below the curve of a phase."""
    factor = recipe.optim.base_lr(recipe.batch_size) / float(recipe.optim.lr)  # type: ignore[attr-defined]
    groups = ", ".join(f"{scale * factor:.3g}" for scale in trace.lr_scales)
    lines = []
    if factor != 1 or trace.lr_scales != (1.0,):
        batch = f" (batch_size {recipe.batch_size} makes {factor:.3g} of it)" if factor != 1 else ""
        lines.append(f"what trains has optim.lr x {groups}{batch}")
    if STARTS[trace.start]:
        lines.append(STARTS[trace.start])
    ended = "diverged" if trace.diverged else "did not diverge"
    lines.append(f"{len(trace.lrs)} of {trace.steps} steps taken, the loss {ended}")
    values = [(name, getattr(suggestions, name)) for name in ("steepest", "valley", "slide")]
    if any(value is not None for _, value in values):
        lines.append("  ".join(f"{name} {'-' if value is None else rounded(value)}" for name, value in values))
    if suggestions.recommended is None:
        lines.append(f"nothing to recommend: {suggestions.why}")
    else:
        lines.append(f"recommended: optim.lr={rounded(suggestions.recommended)} ({suggestions.why})")
    if suggestions.is_bound:
        lines.append("the loss still falls at the end; a higher --to may find a higher rate")
    return lines


def overrides(results: Sequence[tuple[Trace, Suggestions]], recipe: Recipe) -> list[str]:
    """Return how to use the recommended rates: one for all phases and, if they differ, each phase's own."""
    rates = {trace.number: s.recommended for trace, s in results if s.recommended is not None}
    if not rates:
        return []
    lowest, highest = min(rates.values()), max(rates.values())
    alone = len(rates) == len(recipe.freeze_plan)
    lines = [f"use optim.lr={rounded(lowest)}"]
    if len(rates) > 1:
        lines = [f"one rate for all these phases, the lowest: optim.lr={rounded(lowest)}"]
    if highest / lowest < SAME:
        return lines
    words = [f"optim.lr={rounded(highest)}"]
    for number, rate in sorted(rates.items()):
        if rate == highest:
            continue
        for place, (_, scale) in enumerate(recipe.freeze_plan[number].rules):
            if scale:
                words.append(f"freeze_plan.{number}.rules.{place}.1={scale * rate / highest:.2g}")
    lines.append(f"or each phase at its own: {' '.join(words)}")
    if not alone:
        lines.append("(the phases that were not tested train by optim.lr, too)")
    return lines
