"""The command `cache`: the stored features of frozen networks, and their removal."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console

from launcher.cli.app import app
from launcher.console import show_table
from launcher.text import one_line, plural, readable_size
from launcher.training.feature_cache.directory import cache_folder, entries, remove


@app.command()
def cache(
    keep_gb: Annotated[
        float | None,
        typer.Option(min=0, metavar="N", help="remove the longest unused, until N gigabytes are left; 0 removes all"),
    ] = None,
) -> None:
    """Show the stored features of frozen networks, from the longest unused; remove some with --keep-gb.

    They lie in $LAUNCHER_CACHE, or in launcher/ in the user's folder for caches, and can be removed at any time: what a
    run needs of them is computed again. $LAUNCHER_CACHE_GB limits them beforehand.
    """
    folder = cache_folder()
    stored = entries(folder)
    total = sum(entry.bytes for entry in stored)
    if keep_gb is not None:
        while stored and total > keep_gb * 1e9:
            entry = stored.pop(0)
            remove(entry)
            total -= entry.bytes
            print(f"removed {entry.path.name} ({readable_size(entry.bytes)})")
    rows = [["used", "size", "images", "backbone"]]
    for entry in stored:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        backbone = one_line(str(entry.about.get("backbone", "")))
        rows.append([used, readable_size(entry.bytes), f"{entry.about.get('images', 0):,}", backbone])
    console = Console(highlight=False, soft_wrap=True)
    if stored:
        show_table(rows, console, left=(0, 3))
    console.print(f"{folder}: {readable_size(total)} in {plural(len(stored), 'set of features', 'sets of features')}")
