"""Training runs within the test's own process, and the rows that they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
from launcher import Recipe
from launcher.recipe.loading import LoadedRecipe
from launcher.training import loop
from launcher.training.launch import Launch, World


def train(recipe: Recipe, run_dir: Path, **launch: Any) -> None:
    world = World(use_cpu=True, num_cpus=1)
    loaded = LoadedRecipe(recipe, "tiny", Path(tiny.__file__))
    loop.run(loaded, Launch(run_dir=run_dir, world=world, **launch))


def rows(run_dir: Path, event: str) -> list[dict[str, Any]]:
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["event"] == event]
