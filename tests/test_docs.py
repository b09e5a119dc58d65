"""What the pages in docs/ name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from commands import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))


def names_in(file: Path) -> set[str]:
    """Return the functions, classes, methods ("Run.check_in") and values that a file defines."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


PLACE = r"(?:launcher|tests|slurm|recipes|benchmarks)/[\w/.-]*"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_named_exists(page: Path) -> None:
    """A path in backticks is a file or folder; names in backticks right after a Python file are defined in it."""
    text = " ".join(page.read_text().split())
    places = re.findall(rf"`({PLACE})`", text)
    assert [place for place in places if not (ROOT / place).exists()] == []
    named = re.findall(rf"`({PLACE}\.py)`((?: `\w+(?:\.\w+)?`,?)+)", text)
    assert len(named) > 20, "the pattern that finds them is broken"
    absent = [
        f"{place}: {name}"
        for place, quoted in named
        for name in re.findall(r"`([\w.]+)`", quoted)
        if name not in names_in(ROOT / place)
    ]
    assert absent == []
