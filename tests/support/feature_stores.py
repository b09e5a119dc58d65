"""Stores of features, and how far two runs are apart."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file


def difference(one: Path, other: Path) -> float:
    first, second = (load_file(run_dir / "final" / "model.safetensors") for run_dir in (one, other))
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def store_of(run_dir: Path) -> dict[str, str]:
    found = json.loads((run_dir / "cache.json").read_text())
    return {entry["phase"]: entry["store"] for entry in found.values()}
