"""The files of explanation/, written by `report --explain`, if they belong to the weights that the run ended with."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

from launcher.report.facts import Facts
from launcher.text import active_cell


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The contents of explanation/."""

    summary: dict[str, Any]
    """The content of explanation.json."""
    labels: list[dict[str, str]]
    """The rows of suspicious_labels.csv."""
    duplicates: list[dict[str, str]]
    """The rows of near_duplicates.csv."""
    places: list[dict[str, str]]
    """The rows of map.csv."""
    attention: list[dict[str, Any]]
    """The Grad-CAM images of attention.json."""


def read_explanation(facts: Facts) -> Explanation | None:
    """Read the explanation of a run; return None if there is none that can be read, or it is of other weights."""
    folder = facts.path / "explanation"
    try:
        summary = json.loads((folder / "explanation.json").read_text(encoding="utf-8"))
        if summary["step"] != facts.model.get("step"):
            return None
        attention = folder / "attention.json"
        return Explanation(
            summary,
            _rows(folder / "suspicious_labels.csv"),
            _rows(folder / "near_duplicates.csv"),
            _rows(folder / "map.csv"),
            json.loads(attention.read_text(encoding="utf-8")) if attention.exists() else [],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        return [{name: active_cell(cell) for name, cell in row.items()} for row in csv.DictReader(stream)]
