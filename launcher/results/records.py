"""What a run has written of itself, in the shape that reports and tables rely on; what is not of it is not used.

A run dir is data: its files may be damaged, or written by another program.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from launcher.errors import UserError
from launcher.files import read_json

Number = float | None


class _Scores(BaseModel):
    precision: Number
    recall: Number
    f1: Number
    support: int


class _Label(BaseModel):
    at_threshold: dict[str, Any]
    support: int


class _Fit(BaseModel):
    ece: Number
    nll: Number
    bins: list[dict[str, Any]]


class _Calibration(BaseModel):
    temperature: float
    fitted: str
    before: _Fit
    after: _Fit


class _Intervals(BaseModel):
    of: dict[str, tuple[float, float] | None]


class _Evaluation(BaseModel):
    metrics: dict[str, Number] = {}
    samples: int = 0
    intervals: _Intervals = _Intervals(of={})
    weights: dict[str, Any] = {}
    classes: dict[str, _Scores] = {}
    labels: dict[str, _Label] = {}
    calibration: _Calibration | None = None
    residuals: dict[str, Any] = {}


class _Epoch(BaseModel):
    phase: str
    epoch: int
    step: int
    train_loss: Number
    val: dict[str, Number]
    best: bool


class _Environment(BaseModel):
    data: dict[str, Any] = {}
    command: list[str] = []
    starter: list[str] = []
    packages: dict[str, Any] = {}


class _Plan(BaseModel):
    phases: list[dict[str, Any]] = []
    data: dict[str, Any] = {}


def read_evaluation(file: Path) -> dict[str, Any]:
    """Return an evaluation.json. Raises UserError where it is missing, or is none."""
    content = read_json(file)
    try:
        _Evaluation.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{file}: is damaged ({where + ': ' * bool(where)}{first['msg'].lower()})") from error
    found: dict[str, Any] = content
    return found


def sound_environment(content: dict[str, Any]) -> dict[str, Any]:
    """Return what an environment.json holds; nothing where its parts are of other kinds."""
    return content if _fits(_Environment, content) else {}


def sound_plan(content: dict[str, Any]) -> dict[str, Any]:
    """Return what a plan.json holds; nothing where its parts are of other kinds."""
    return content if _fits(_Plan, content) else {}


def read_lines(file: Path) -> tuple[str, ...]:
    """Return the lines of a file, without empty ones; none where it cannot be read."""
    try:
        # Not splitlines: a name may hold other characters that end a line.
        return tuple(line for line in file.read_text(encoding="utf-8", errors="backslashreplace").split("\n") if line)
    except OSError:
        return ()


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines that are whole; the last may be that of a process that was killed."""
    rows = []
    for line in read_lines(file):
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def epochs_of(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl that tell of an epoch."""
    return [row for row in rows if row.get("event") == "epoch" and _fits(_Epoch, row)]


def _fits(shape: type[BaseModel], content: object) -> bool:
    try:
        shape.model_validate(content)
    except ValidationError:
        return False
    return True
