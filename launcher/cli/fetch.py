"""The command `fetch`: what a recipe needs from the network, in a folder for machines without one."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from launcher.assets.fetch import fetch as bring
from launcher.cli.app import app
from launcher.cli.options import Overrides, RecipeName, load


@app.command()
def fetch(
    recipe: RecipeName,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="the folder to fill; several recipes may share it")],
    overrides: Overrides = None,
) -> None:
    """Bring a recipe's weights and data set into a folder, so that it runs where there is no network (--assets DIR).

    What is there already is verified, what is missing or damaged is fetched. Paths of your own stay where they are.
    """
    os.environ["TQDM_DISABLE"] = "1"  # for a progress bar of our own; libraries read this when they are imported
    loaded = load(recipe, overrides)
    done = bring(loaded.recipe, to, lambda line: print(line, flush=True))
    command = shlex.join(["python", "-m", "launcher", recipe, *(overrides or []), "--assets", str(to)])
    if not (done.brought or done.there):
        print(f"nothing to fetch: the recipe needs nothing of a network, a cache or a package; {command} works, too")
    else:
        print(f"all is in {to}; without network: {command}")
