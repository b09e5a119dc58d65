"""The command `sweep`: many trials of a recipe with other settings."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from launcher.cli.app import app
from launcher.cli.compare import Format
from launcher.cli.options import (
    AssetsFolder,
    MicroBatch,
    PreparedFolder,
    RecipeName,
    check_assets,
    load,
    read_micro_batch,
    training_words,
    use_assets,
)
from launcher.cluster.processes import check_world
from launcher.console import columns, to_stderr
from launcher.errors import Problems, UserError, pip_install
from launcher.recipe.loading import LoadedRecipe
from launcher.recipe.overrides import apply_overrides
from launcher.text import one_line
from launcher.tuning.sweep.space import Space, read_space

if TYPE_CHECKING:
    from launcher.tuning.sweep.sweep import Outcome


Varied = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME=RANGE|CHOICES|VALUE",
        help="'optim.lr=1e-4..1e-2 (log)' freeze_plan.0.epochs=1..5 head.dropout=0,0.2",
    ),
]


@app.command()
def sweep(
    recipe: RecipeName,
    varied: Varied = None,
    trials: Annotated[
        int | None, typer.Option(min=1, max=100_000, metavar="N", help="in all, over all workers of the study")
    ] = None,
    study: Annotated[
        Path | None, typer.Option(metavar="DIR", help="shared by all workers; runs/<recipe>-sweep unless given")
    ] = None,
    sampler: Annotated[Literal["tpe", "random"], typer.Option(help="how settings are drawn")] = "tpe",
    pruner: Annotated[
        Literal["median", "hyperband", "none"], typer.Option(help="which trials are stopped early")
    ] = "median",
    seeds: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="then train the best (or the recipe itself) with N other seeds"),
    ] = None,
    as_: Annotated[Format, typer.Option("--as", help="for people, spreadsheets, or programs")] = "table",
    processes: Annotated[int, typer.Option(min=1, metavar="N", help="processes for each trial, on this machine")] = 1,
    micro_batch: MicroBatch = None,
    workers: Annotated[int | None, typer.Option(min=0, metavar="N", help="data-loading processes for each")] = None,
    assets: AssetsFolder = None,
    prepared: PreparedFolder = None,
) -> None:
    """Search the best settings of a recipe. The same command again, here or elsewhere, takes part in the same study.

    Each trial is a run with a run dir of its own, DIR/trial-0007. Ends with a table, DIR/sweep.html and the best as a
    recipe, DIR/best.py. Exit codes: 0 done, 1 no trial finished, 2 a mistake, 85 stopped and saved, 130 after Ctrl-C.
    """
    loaded, space = _checked(recipe, list(varied or []), trials, seeds or 0, assets, micro_batch)
    from launcher.tuning.sweep.sweep import Request, Sweep

    request = Request(
        loaded=loaded,
        spec=recipe,
        space=space,
        folder=study or Path("runs") / f"{loaded.run_name}-sweep",
        trials=trials or 0,
        seeds=seeds or 0,
        sampler=sampler,
        pruner=pruner,
        processes=processes,
        words=tuple(training_words(micro_batch, workers, assets, prepared)),
    )
    outcome = Sweep(request, report=to_stderr).work()
    _show(outcome, as_)
    if outcome.end != "done":
        raise typer.Exit(130 if outcome.end == "interrupted" else 85)
    if outcome.is_over and not any(row.state == "finished" for row in (*outcome.table.rows, *outcome.table.seeds)):
        raise typer.Exit(1)


def _checked(
    recipe: str, words: list[str], trials: int | None, seeds: int, assets: Path | None, micro_batch: str | None
) -> tuple[LoadedRecipe, Space]:
    """Return the recipe with its fixed overrides, and what varies. Raises UserError with all that is wrong."""
    problems = Problems()
    with problems.collected():
        if importlib.util.find_spec("optuna") is None:
            raise UserError(f"sweep: needs Optuna; {pip_install('sweep')}")
    with problems.collected():
        use_assets(assets)
    with problems.collected():
        read_micro_batch(micro_batch)
    with problems.collected():
        if (count := check_world().num_processes) > 1:
            raise UserError(
                f"sweep: a worker is one process, not {count}; start it with python -m launcher sweep, and give "
                "--processes for the trials"
            )
    with problems.collected():
        loaded = load(recipe, [])
        with problems.collected():
            space = read_space(loaded.recipe, words)
            names = [dimension.name for dimension in space.dimensions]
            if not names and not seeds:
                problems.found.append(
                    "sweep: nothing varies; give a range ('optim.lr=1e-4..1e-2 (log)'), choices (seed=0,1) or --seeds 5"
                )
            if names and trials is None:
                problems.found.append("--trials: how many in all, over all workers? e.g. --trials 30")
            if not names and trials is not None:
                problems.found.append(f"--trials {trials}: nothing varies, so there is nothing to try; give a range")
            if seeds and "seed" in names:
                problems.found.append(f"seed={space.words['seed']}: --seeds {seeds} gives the seeds; leave one out")
            loaded = dataclasses.replace(loaded, recipe=apply_overrides(loaded.recipe, space.fixed))
            check_assets(loaded, assets, recipe, list(space.fixed))
    problems.raise_if_any()
    return loaded, space


def _show(outcome: Outcome, as_: Format) -> None:
    if as_ != "table":
        table = outcome.table
        print(table.as_csv() if as_ == "csv" else table.as_json(), end="" if as_ == "csv" else "\n")
        return
    names = outcome.table.columns
    cells = [["-" if cell is None else _shown(cell) for cell in row] for row in outcome.table.cells()]
    left = [place for place, name in enumerate(names) if name in ("run", "state", "cause")]
    print("\n".join(columns([names, *cells], left=left)))
    lines = [("page", str(outcome.page))]
    if outcome.best is not None:
        lines += [("sure", outcome.certainty)] if outcome.certainty else []
        lines += [("model", str(outcome.model))] if outcome.model else []
        lines += [("best", str(outcome.best)), ("next", outcome.command)]
    if outcome.table.spread is not None:
        lines.insert(0, ("seeds", str(outcome.table.spread)))
    if not outcome.is_over:
        lines.append(("to do", "the sweep is not over: other workers are at it, or the same command goes on with it"))
    for name, text in lines:
        print(f"{name:<6}{text}")


def _shown(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else one_line(str(cell))
