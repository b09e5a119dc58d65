"""Records of a run, in the form on which reports and tables rely; those of another form are not used.

A run dir is data: its files may be damaged, or written by another program.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from launcher.errors import UserError
from launcher.files import read_json

Number = Annotated[float, Field(allow_inf_nan=True)] | None


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Scores(_Record):
    precision: Number
    recall: Number
    f1: Number
    support: int


class _Label(_Record):
    at_threshold: dict[str, Any]
    support: int


class _Bin(_Record):
    begin: float = Field(alias="from")
    end: float = Field(alias="to")
    confidence: float
    accuracy: float
    samples: int


class _Fit(_Record):
    ece: Number
    nll: Number
    bins: list[_Bin]


class _Calibration(_Record):
    temperature: float
    fitted: str
    before: _Fit
    after: _Fit


class _Intervals(_Record):
    of: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)] | None]


class _Evaluation(_Record):
    metrics: dict[str, Number] = {}
    samples: int = 0
    intervals: _Intervals = _Intervals(of={})
    weights: dict[str, Any] = {}
    classes: dict[str, _Scores] = {}
    labels: dict[str, _Label] = {}
    calibration: _Calibration | None = None
    residuals: dict[str, Any] = {}


class _Epoch(_Record):
    phase: str
    epoch: int
    step: int
    train_loss: Number
    val: dict[str, Number]
    best: bool


class _Step(_Record):
    step: int
    lr: float
    loss: Number


class _Seconds(_Record):
    number: int = 0
    phase: str = ""
    epoch: int = 0
    seconds: float
    images_per_second: float = 0.0
    waited_share: float = 0.0


class _Proof(_Record):
    number: int
    when: str
    tensors: int
    digest: str


class _Data(_Record):
    names: list[str] = []
    train_samples: int = 0
    val_samples: int = 0


class _Environment(_Record):
    data: _Data = _Data()
    command: list[str] = []
    starter: list[str] = []
    packages: dict[str, str] = {}
    platform: str = ""
    python: str = ""
    folder: str = ""


class _Group(_Record):
    what: str
    parameters: int
    lr: float
    lr_scale: float


class _Phase(_Record):
    name: str
    epochs: int
    steps_per_epoch: int
    monitor: str | None = None
    mode: str | None = None
    trains: list[_Group]
    trainable_parameters: int
    total_parameters: int
    norm_layers: int
    norm_statistics: str
    pictures: str | None = None


class _Machine(_Record):
    processes: int
    device: str
    device_name: str | None
    micro_batch_size: int
    accumulation_steps: int
    data_workers: int
    mixed_precision: str


class _Counted(_Record):
    of_each: list[int] = []
    quartiles: list[Annotated[list[float], Field(min_length=5, max_length=5)]] = []


class _Counts(_Record):
    image_size: int | None = None
    train: _Counted = _Counted()
    val: _Counted = _Counted()


class _Plan(_Record):
    machine: _Machine | None = None
    phases: list[_Phase] = []
    data: _Counts = _Counts()


class _Stored(_Record):
    store: str
    why: str


class _Cache(RootModel[dict[str, _Stored]]):
    pass


class _Precision(_Record):
    seconds_of_a_micro_step: dict[str, float] = {}


def read_evaluation(file: Path) -> dict[str, Any]:
    """Return the content of an evaluation.json; raise UserError if it is missing or damaged."""
    content: dict[str, Any] = read_json(file)
    try:
        _Evaluation.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{file}: is damaged ({where + ': ' * bool(where)}{first['msg'].lower()})") from error
    return content


def sound_environment(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of an environment.json, or nothing if its fields have other types."""
    return content if _fits(_Environment, content) else {}


def sound_plan(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a plan.json, or nothing if its fields have other types."""
    return content if _fits(_Plan, content) else {}


def sound_cache(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a cache.json, or nothing if its fields have other types."""
    return content if _fits(_Cache, content) else {}


def sound_precision(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a precision.json, or nothing if its fields have other types."""
    return content if _fits(_Precision, content) else {}


def read_lines(file: Path) -> tuple[str, ...]:
    """Return the lines of a file that are not empty, or none if it cannot be read."""
    try:
        # splitlines would not do: a name may hold other characters at which it ends a line.
        return tuple(line for line in file.read_text(encoding="utf-8", errors="backslashreplace").split("\n") if line)
    except OSError:
        return ()


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the complete rows of a file of JSON lines; the last may be incomplete if its process was killed."""
    rows = []
    for line in read_lines(file):
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def epochs_of(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl that describe an epoch."""
    return [row for row in rows if row.get("event") == "epoch" and _fits(_Epoch, row)]


def steps_of(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl that describe an optimizer step."""
    return [row for row in rows if row.get("event") == "step" and _fits(_Step, row)]


def timing_of(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the valid rows of a timing.jsonl."""
    return [row for row in rows if _fits(_Seconds, row)]


def proofs_of(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the valid rows of a proofs.jsonl."""
    return [row for row in rows if _fits(_Proof, row)]


def _fits(shape: type[BaseModel], content: object) -> bool:
    try:
        shape.model_validate(content)
    except ValidationError:
        return False
    return True
