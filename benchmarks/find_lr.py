"""Whether `find-lr` tells a rate that trains well: its suggestions beside runs to the end at a grid of rates.

    python benchmarks/find_lr.py [--root hymenoptera_data] [--what head finetune whole] [--seeds 0 1 2]

EfficientNet-lite0 on the digits, and with --root on ants and bees. `head`: the recipe's first phase alone. `finetune`:
an epoch of the second phase, from a head in closed form. `whole`: two epochs of the head and one of all, in each phase
at the rate recommended for it; the grid's rate is the first phase's, the second keeps its ratio to it. A rate is good
where the validation accuracy of its run is at least 95 % of the best of the grid.

Seen (AdamW, grid 1e-4 to 1e-1; the recommended rate was good in all eight):

                             steepest  valley  slide   good rates      recommended, its accuracy   best of the grid
    digits head, seed 0        7.7e-3  1.1e-3  3.4e-3  1e-3 to 1e-1         3.4e-3    0.9192       0.9248
    digits head, seed 1        4.0e-3  5.7e-4  1.5e-3  1e-3 to 1e-1         1.5e-3    0.8942       0.9136
    digits head, seed 2        2.9e-3  6.7e-4  4.8e-3  3e-3 to 1e-1         2.9e-3    0.8969       0.9053
    hymenoptera head, seed 0   2.5e-3  1.8e-3  2.1e-2  3e-4 to 1e-1         2.5e-3    0.9542       0.9608
    hymenoptera head, seed 1   2.9e-3  1.5e-3  1.7e-2  3e-4 to 1e-1         2.9e-3    0.9412       0.9477
    hymenoptera head, seed 2   2.9e-3  1.5e-3  1.1e-2  3e-4 to 1e-1         2.9e-3    0.9608       0.9608
    digits finetune, seed 0         -       -       -  1e-4 to 3e-3         1.6e-4    0.9582       0.9666
    digits whole, seed 0       7.7e-3  1.1e-3  3.4e-3  1e-3 to 1e-1         3.4e-3    0.9415       0.9415

`valley` alone, fastai's default, lay below the good rates of the digits' short probes (seeds 1, 2), hence the median.
From a head in closed form, which fits the training images almost without loss, the loss does not fall: there is only
the rate at which it rises to go by. What follows from it is cautious: the whole digits at 2e-3 in both phases, nine
times as high, came to 0.9749, and at the lowest of the two rates in both, 2.2e-4, to 0.9276.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from accelerate.state import AcceleratorState

from launcher import Recipe
from launcher.recipe.loading import LoadedRecipe, load_recipe
from launcher.recipe.overrides import apply_overrides
from launcher.training import loop
from launcher.training.launch import Launch
from launcher.tuning.lr_finder.range_test import range_test
from launcher.tuning.lr_finder.suggestions import rounded, suggest
from launcher.tuning.lr_finder.summary import overrides
from launcher.tuning.lr_finder.trace import Range

ROOT = Path(__file__).parents[1]
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
GOOD = 0.95


def variant(recipe: Recipe, what: str) -> Recipe:
    head, *_, last = recipe.freeze_plan
    if what == "head":
        return dataclasses.replace(recipe, freeze_plan=(head,))
    last = dataclasses.replace(last, epochs=1)
    if what == "finetune":
        closed = dataclasses.replace(recipe.head, init="ridge")  # type: ignore[type-var]
        return dataclasses.replace(recipe, freeze_plan=(last,), head=closed)
    return dataclasses.replace(recipe, freeze_plan=(dataclasses.replace(head, epochs=2), last))


def accuracy(loaded: LoadedRecipe, recipe: Recipe) -> float | None:
    """Of a whole run; None where it was ended by a gradient that was not finite."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder, "run")
        try:
            loop.run(dataclasses.replace(loaded, recipe=recipe), Launch(run_dir=run_dir))
        except Exception as error:
            print(error, file=sys.stderr)
            return None
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
        return float(json.loads((run_dir / "final/metrics.json").read_text())["accuracy"])


def compare(name: str, loaded: LoadedRecipe, what: str, grid: tuple[float, ...]) -> None:
    recipe = variant(loaded.recipe, what)
    tested = dataclasses.replace(loaded, recipe=recipe)
    traces = range_test(tested, Launch(), Range(), range(len(recipe.freeze_plan)))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert traces is not None
    found = [(trace, suggest(trace)) for trace in traces]
    first, recommended = found[0][1], [suggestions.recommended for _, suggestions in found]
    if what == "whole":
        words = overrides(found, recipe)[-1].rpartition(": ")[2].split()
        recipe = apply_overrides(recipe, words)
        recommended = [float(words[0].partition("=")[2])]
    reached = {}
    for lr in sorted({*grid, *(float(rounded(lr)) for lr in recommended if lr is not None)}):
        tried = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, lr=lr))  # type: ignore[type-var]
        reached[lr] = accuracy(loaded, tried)
    best = max(value for lr, value in reached.items() if value is not None and lr in grid)
    good = [lr for lr in grid if (reached[lr] or 0) >= GOOD * best]
    measured = " ".join(
        f"{mark} {'-' if (value := getattr(first, mark)) is None else rounded(value)}"
        for mark in ("steepest", "valley", "slide")
    )
    print(f"{name}, {what}, seed {recipe.seed}: {measured}; good from {good[0]:g} to {good[-1]:g}")
    shown = [float(rounded(lr)) for lr in recommended if lr is not None]
    for lr, value in reached.items():
        here = "  <- recommended" if lr in shown else ""
        is_good = (value or 0) >= GOOD * best
        print(
            f"  {lr:8.2g}  {'not finite' if value is None else f'{value:.4f}'}  {'good' if is_good else '    '}{here}"
        )
    inside = all(lr is not None and (reached[float(rounded(lr))] or 0) >= GOOD * best for lr in recommended)
    print(f"  the recommended rate is {'' if inside else 'NOT '}good", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root")
    parser.add_argument("--what", nargs="+", default=["head"], choices=["head", "finetune", "whole"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--grid", nargs="+", type=float, default=list(GRID))
    words = parser.parse_args()
    recipes = [("digits", load_recipe(str(ROOT / "recipes/digits.py")), [])]  # type: ignore[var-annotated]
    if words.root:
        root = Path(words.root).absolute()
        recipes.append(("hymenoptera", load_recipe(str(ROOT / "recipes/hymenoptera.py")), [f"data.root={root}"]))
    for name, loaded, changes in recipes:
        for seed in words.seeds:
            recipe = apply_overrides(loaded.recipe, [*changes, f"seed={seed}"])
            for what in words.what:
                compare(name, dataclasses.replace(loaded, recipe=recipe), what, tuple(words.grid))


if __name__ == "__main__":
    main()
