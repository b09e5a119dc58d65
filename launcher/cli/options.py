"""The arguments and options that several commands take, and their meaning."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from launcher.assets import bundle
from launcher.assets.fetch import missing_assets
from launcher.cli.app import command_names
from launcher.errors import UserError, did_you_mean
from launcher.files import expanded
from launcher.recipe.loading import LoadedRecipe, load_recipe
from launcher.recipe.overrides import apply_overrides
from launcher.recipe.serialization import to_json

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="recipes/resnet50.py, recipes.resnet50, or either with :variable")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME=VALUE", help="optim.lr=3e-4 freeze_plan.0.epochs=5 backbone.weights=none"),
]
MicroBatch = Annotated[
    str | None,
    typer.Option(
        "--micro-batch",
        metavar="M",
        help="samples per device for each forward, or 'auto': what fits; changes memory and speed only",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=0, max=1024, metavar="N", help="data-loading processes for each training process"),
]
Report = Annotated[
    bool, typer.Option("--report/--no-report", help="end with an evaluation in full and report.html, or without")
]

AssetsFolder = Annotated[
    Path | None,
    typer.Option(
        "--assets",
        envvar="LAUNCHER_ASSETS",
        metavar="DIR",
        help="take weights and data sets from this folder only, as 'fetch' filled it; nothing is downloaded",
    ),
]

OwnRecipe = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        metavar="FILE[:NAME]",
        help="the recipe file that defines parts of your own, where the run has some: its code is run; nothing that a "
        "run dir names is",
    ),
]

RunOrJob = Annotated[str, typer.Argument(metavar="RUN_DIR|JOB", help="runs/pets, or a job's id")]

PREPARED_VARIABLE = "LAUNCHER_PREPARED"
PreparedFolder = Annotated[
    Path | None,
    typer.Option(
        "--prepared",
        envvar=PREPARED_VARIABLE,
        metavar="DIR",
        help="take the images from this copy, as 'prepare' made it; it must be of these very images",
    ),
]


def screen_width() -> float:
    """Return how many characters fit in a line of the terminal, or what COLUMNS says; a pipe has no limit."""
    console = Console()
    return console.width if console.is_terminal or "COLUMNS" in os.environ else math.inf


def use_assets(folder: Path | None) -> None:
    """Use a folder of assets. This comes before the import of the recipe, as libraries read their paths only once."""
    if folder is not None:
        bundle.use_assets(folder)


def check_assets(loaded: LoadedRecipe, folder: Path | None, recipe: str, overrides: list[str] | None) -> None:
    """Raise UserError with a line for each asset that the recipe needs and `folder` lacks; no bytes are read."""
    if folder is None:
        return
    folder = expanded(folder).absolute()
    command = shlex.join(["python", "-m", "launcher", "fetch", recipe, *(overrides or []), "--to", str(folder)])
    if missing := missing_assets(loaded.recipe, folder, command):
        raise UserError(*missing)


def training_words(
    micro_batch: str | None, workers: int | None, assets: Path | None, prepared: Path | None
) -> list[str]:
    """Return options of `train`, in the form in which they mean the same in any folder."""
    words = ["--micro-batch", micro_batch] if micro_batch else []
    words += ["--workers", str(workers)] if workers is not None else []
    words += ["--assets", str(assets.absolute())] if assets is not None else []
    return words + (["--prepared", str(prepared.absolute())] if prepared is not None else [])


def leave_prepared_copy() -> None:
    """Ignore a prepared copy, for commands that train on some samples: it is of all, and processes would refuse it."""
    os.environ.pop(PREPARED_VARIABLE, None)


def read_micro_batch(text: str | None) -> int | Literal["auto"] | None:
    """Parse the value of --micro-batch. Raises UserError for other text than a whole number from 1, or "auto"."""
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--micro-batch {text!r}: must be a whole number from 1, or auto")
    return int(text)


def load(name: str, overrides: list[str] | None, assets: Path | None = None) -> LoadedRecipe:
    """Load a recipe and apply the overrides; look for its assets in `assets`. Raises UserError for any of these."""
    names = command_names()
    if name in names:
        raise UserError(f"{name}: a command comes first: python -m launcher {name} RECIPE ...")
    if "=" in name and not Path(name).exists():
        raise UserError(f"{name}: an override, but the recipe comes first: python -m launcher RECIPE {name}")
    try:
        loaded = load_recipe(name)
    except UserError as error:
        close = did_you_mean(name, names)
        if name.isidentifier() and "did you mean" in close:
            raise UserError(f"{name}: neither a command nor a recipe{close}") from error
        raise
    changed = dataclasses.replace(loaded, recipe=apply_overrides(loaded.recipe, overrides or []))
    to_json(changed.recipe)  # a part that cannot be written down is reported here, not when the run dir is made
    check_assets(changed, assets, name, overrides)
    return changed
