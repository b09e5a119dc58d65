"""The contents of a run dir's files, for the sections of a report; missing ones are empty, and reported in `notes`."""

from __future__ import annotations

import bisect
import dataclasses
import json
from pathlib import Path
from typing import Any

from launcher.errors import UserError
from launcher.files import metrics_from_json, read_metrics, refuse_endless
from launcher.inference.run_records import (
    epochs_of,
    proofs_of,
    read_evaluation,
    read_lines,
    read_rows,
    sound_cache,
    sound_environment,
    sound_plan,
    sound_precision,
    steps_of,
    timing_of,
)
from launcher.recipe.protocols import Splits
from launcher.report.samples import Kind, Samples, read_samples
from launcher.report.thumbnails import Thumbnails
from launcher.training.best import Mode

KINDS: tuple[Kind, ...] = ("classification", "multi-label", "regression")
USUAL = {"classification": ("accuracy", "max"), "multi-label": ("map", "max"), "regression": ("mae", "min")}


@dataclasses.dataclass(frozen=True)
class Epoch:
    """An epoch that was evaluated."""

    count: int
    """The epoch's number in the run, from 1."""
    number: int
    """The number of its phase, from 0."""
    phase: str
    in_phase: int
    step: int
    """Optimizer steps of the run until the end of the epoch."""
    train_loss: float
    val: dict[str, float]
    best: bool
    """True if it was the best of its phase when it was evaluated."""


@dataclasses.dataclass(frozen=True)
class Step:
    """An optimizer step."""

    at: float
    """The end of the step, in epochs since the beginning of the run."""
    lr: float
    loss: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts on a finished run that its report shows."""

    path: Path
    kind: Kind
    names: tuple[str, ...]
    """The names of the classes, labels or targets."""
    recipe: dict[str, Any]
    environment: dict[str, Any]
    plan: dict[str, Any]
    model: dict[str, Any]
    """The content of `final/model.json`."""
    metrics: dict[str, float]
    """The metrics of the kept weights on the validation images."""
    epochs: tuple[Epoch, ...]
    steps: tuple[Step, ...]
    timing: tuple[dict[str, Any], ...]
    proofs: tuple[dict[str, Any], ...]
    cache: dict[str, Any]
    precision: dict[str, Any]
    skipped: tuple[str, ...]
    evaluation: dict[str, Any]
    test: dict[str, Any]
    """The evaluation of these weights on the test images; empty if there was none."""
    samples: Samples | None
    splits: Splits | None
    """The data themselves, if they could be loaded."""
    thumbnails: Thumbnails
    notes: tuple[str, ...]
    """Sentences on what is missing from the report, and why."""
    shows_images: bool = True
    """True if images that are stored in the run dir are shown as well."""

    @property
    def monitor(self) -> str:
        """The metric by which the run chose its best epoch."""
        phases = self.plan.get("phases") or [{}]
        named = phases[-1].get("monitor") or USUAL.get(self.kind, ("", ""))[0]
        return named if named in self.metrics else next(iter(self.metrics), "")

    @property
    def mode(self) -> Mode:
        """The direction in which the monitored metric improves."""
        phases = self.plan.get("phases") or [{}]
        return "min" if (phases[-1].get("mode") or USUAL.get(self.kind, ("", "max"))[1]) == "min" else "max"

    @property
    def averaged(self) -> bool:
        """True if the weights that are kept are a moving average."""
        return self.recipe.get("ema_decay") is not None

    def validated(self, epoch: Epoch, metric: str) -> float | None:
        """Return a metric of an epoch's weights, or of their moving average if that is what is kept."""
        return epoch.val.get(f"ema_{metric}" if self.averaged else metric)

    @property
    def kept(self) -> Epoch | None:
        """The epoch whose weights are in `final/`."""
        step = self.model.get("step")
        return next((epoch for epoch in self.epochs if epoch.step == step), None)

    @property
    def seconds(self) -> float:
        """The duration of training: the work before the first steps, training and validation.

        An epoch that was trained again counts with its last time.
        """
        last = {(row.get("number"), row.get("phase"), row.get("epoch")): row for row in self.timing if "epoch" in row}
        before = sum(row["seconds"] for row in self.timing if "epoch" not in row)
        return float(before + sum(row["seconds"] for row in last.values()))

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """The scores of each class, or of each label at its threshold."""
        labels = self.evaluation.get("labels", {})
        return self.evaluation.get("classes") or {name: label["at_threshold"] for name, label in labels.items()}

    def interval(self, metric: str) -> tuple[float, float] | None:
        """Return the confidence interval of a metric, or None if the evaluation has none."""
        ends = self.evaluation.get("intervals", {}).get("of", {}).get(metric)
        return (float(ends[0]), float(ends[1])) if ends else None


def read_facts(path: Path, splits: Splits | None = None, why_no_images: str = "", notes: tuple[str, ...] = ()) -> Facts:
    """Read the facts on a finished run. Raises UserError if `path` is not the folder of one.

    `why_no_images` says why `splits` are missing; `notes` come before the notes on missing files.
    """
    refuse_endless(path)
    recipe = _json(path / "recipe.json")
    model = _json(path / "final/model.json")
    if not recipe or not model:
        raise UserError(f"{path}: no finished run (it lacks {'final/model.json' if recipe else 'recipe.json'})")
    task = model.get("task")
    named = task.get("kind") if isinstance(task, dict) else None
    kind: Kind = next((kind for kind in KINDS if kind == named), "other")
    evaluation, remarks = {}, list(notes)
    if (path / "evaluation.json").exists():
        try:
            evaluation = read_evaluation(path / "evaluation.json")
        except UserError as error:
            remarks += [f"{error.problems[0]}: nothing of it is shown; evaluate writes it again."]
    samples = None
    try:
        samples = read_samples(path / "evaluation.parquet", kind)
    except FileNotFoundError:
        remarks.append("There are no predictions for each image: nothing can be said of single images.")
    except (OSError, ValueError, KeyError) as error:
        remarks.append(f"evaluation.parquet cannot be read ({error}): nothing can be said of single images.")
    rows = read_rows(path / "metrics.jsonl")
    epochs = _epochs(rows)
    return Facts(
        path=path,
        kind=samples.kind if samples else kind,
        names=tuple(_json(path / "final/classes.json", [])),
        recipe=recipe,
        environment=sound_environment(_json(path / "environment.json")),
        plan=sound_plan(_json(path / "plan.json")),
        model=model,
        metrics=metrics_from_json(evaluation.get("metrics") or {}) or _metrics(path / "final/metrics.json"),
        epochs=epochs,
        steps=_steps(rows, epochs),
        timing=tuple(timing_of(read_rows(path / "timing.jsonl"))),
        proofs=tuple(proofs_of(read_rows(path / "proofs.jsonl"))),
        cache=sound_cache(_json(path / "cache.json")),
        precision=sound_precision(_json(path / "precision.json")),
        skipped=read_lines(path / "skipped.txt"),
        evaluation=evaluation,
        test=_test(path / "evaluation-test.json", model.get("step")),
        samples=samples,
        splits=splits,
        thumbnails=Thumbnails(splits.val.images if splits else None, samples, why_no_images),
        notes=tuple(remarks),
    )


def _test(file: Path, step: Any) -> dict[str, Any]:
    """Return the evaluation of this step's weights on the test images, empty if there is no sound one."""
    try:
        evaluation = read_evaluation(file)
    except UserError:
        return {}
    return evaluation if evaluation.get("weights", {}).get("step") == step else {}


def _epochs(rows: list[dict[str, Any]]) -> tuple[Epoch, ...]:
    epochs: list[Epoch] = []
    for row in epochs_of(rows):
        # Two phases may share a name; the second one is known by its epochs, which are counted from 1 again.
        begins = bool(epochs) and (row["phase"] != epochs[-1].phase or row["epoch"] <= epochs[-1].in_phase)
        number = epochs[-1].number + begins if epochs else 0
        epochs.append(
            Epoch(
                len(epochs) + 1,
                number,
                row["phase"],
                row["epoch"],
                row["step"],
                metrics_from_json({"loss": row["train_loss"]})["loss"],
                metrics_from_json(row["val"]),
                bool(row["best"]),
            )
        )
    return tuple(epochs)


def _steps(rows: list[dict[str, Any]], epochs: tuple[Epoch, ...]) -> tuple[Step, ...]:
    ends = [epoch.step for epoch in epochs]
    steps = []
    for row in steps_of(rows):
        if (place := bisect.bisect_left(ends, row["step"])) < len(ends):
            begin = ends[place - 1] if place else 0
            steps.append(Step(place + (row["step"] - begin) / (ends[place] - begin), row["lr"], row["loss"]))
    return tuple(steps)


def _metrics(file: Path) -> dict[str, float]:
    try:
        return read_metrics(file)
    except UserError:
        return {}


def _json(file: Path, otherwise: Any = None) -> Any:
    """Return the content of a JSON file; a missing or broken one counts as empty, as a report says what it can."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    empty = {} if otherwise is None else otherwise
    return content if isinstance(content, type(empty)) else empty
