"""What an evaluation found, and the files that it leaves in the run dir."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.errors import UserError
from launcher.files import json_text, read_json, write_atomic
from launcher.inference.evaluation_details import calibration_to_store, details_of
from launcher.inference.finished_run import FinishedRun
from launcher.metrics.bootstrap import Interval, intervals
from launcher.metrics.bootstrap import to_json as intervals_to_json
from launcher.metrics.calibration import read_calibration, write_calibration
from launcher.recipe.protocols import BuiltTask, Split
from launcher.training.evaluation import metrics_of

SAME = 1e-4
"""Metrics that differ by less, relative to their size, are the same: another number of processes rounds otherwise."""

_NUMBERS = re.compile(r"\[\n\s*([-+.\dEe,\s]+?)\n\s*\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What was evaluated."""

    split_name: str
    data: Path | None = None
    """A folder or a table in the place of a split of the run's own."""
    flips: bool = False

    def __str__(self) -> str:
        return (str(self.data) if self.data else self.split_name) + (", with flips" if self.flips else "")

    @property
    def is_validation(self) -> bool:
        """The validation images, as the model is used: what is fitted to its outputs is fitted on these."""
        return self.data is None and self.split_name == "val" and not self.flips

    @property
    def stem(self) -> str:
        """The name of the files, without ending."""
        name = "" if self.split_name == "val" else f"-{self.split_name}"
        if self.data is not None:
            name = f"-data-{self.data.absolute().name}"  # with its ending: new.csv and new/ are two things
        return f"evaluation{name}" + ("-flips" if self.flips else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's outputs on a split, and what they are worth."""

    run: FinishedRun
    subject: Subject
    split: Split
    names: tuple[str, ...]
    """Of classes, labels or targets."""
    task: BuiltTask
    outputs: torch.Tensor
    """float32 (samples, outputs), on the CPU, in the order of the split."""
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    details: dict[str, Any]
    """See `reading.details_of`."""
    how: dict[str, Any]
    """On which processes and device."""

    def to_json(self) -> dict[str, Any]:
        recipe = self.run.recipe
        weights = {
            "file": str(self.run.weights.relative_to(self.run.rundir.path)),
            "step": self.run.step,
            "chosen": recipe.final_weights,
            "averaged": recipe.ema_decay is not None,
        }
        where = {"data": str(self.subject.data.absolute())} if self.subject.data else {"split": self.subject.split_name}
        return {
            **where,
            "flips": self.subject.flips,
            "samples": len(self.split),
            "content": _content(self.split),
            "metrics": self.metrics,
            "intervals": intervals_to_json(self.intervals, self.metrics, recipe.seed),
            "weights": weights,
            **self.how,
            **self.details,
        }

    @property
    def file(self) -> Path:
        """Where it is written: in the place of an earlier one, but not of one of other data of the same name."""
        for number in itertools.count(1):
            file = self.run.rundir.path / f"{self.subject.stem}{f'-{number}' if number > 1 else ''}.json"
            if self.subject.data is None or not file.exists():
                break
            with contextlib.suppress(UserError, AttributeError):
                # Earlier versions wrote the path as it was given.
                if read_json(file).get("data") in (str(self.subject.data.absolute()), str(self.subject.data)):
                    break
        return file

    @property
    def samples_file(self) -> Path:
        return self.file.with_suffix(".parquet")

    def unlike_training(self) -> dict[str, float]:
        """Validation metrics that are not those of the run itself, with what they were: something has changed."""
        if not self.subject.is_validation:
            return {}
        then = self.run.metrics
        return {
            name: then[name]
            for name, value in self.metrics.items()
            if name in then and not _same(name, value, then[name])
        }


def _same(name: str, value: float, then: float) -> bool:
    """Errors in the user's units may be of any size; all else is of the size of 1."""
    in_units = name.partition("/")[0] in ("mae", "rmse")
    both_nan = math.isnan(value) and math.isnan(then)
    return both_nan or abs(value - then) <= SAME * max(0.0 if in_units else 1.0, abs(then))


def _content(split: Split) -> str:
    """A hash of names and targets, by which two evaluations are seen to be of the same images."""
    digest = hashlib.blake2b(np.ascontiguousarray(split.targets).tobytes(), digest_size=16)
    for index in range(len(split)):
        digest.update("/".join(Path(split.images.name(index)).parts[-2:]).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def judged(
    finished: FinishedRun,
    subject: Subject,
    split: Split,
    names: tuple[str, ...],
    task: BuiltTask,
    outputs: torch.Tensor,
    processes: int,
    device: str,
) -> Evaluation:
    """What outputs, float32 (samples, num_outputs), are worth."""
    targets = torch.as_tensor(split.targets)
    metrics = metrics_of(task, outputs, split)
    return Evaluation(
        run=finished,
        subject=subject,
        split=split,
        names=names,
        task=task,
        outputs=outputs,
        metrics=metrics,
        intervals=intervals(task, outputs, targets, metrics, finished.recipe.seed),
        details=details_of(
            task,
            outputs,
            targets,
            names,
            split.images.name,
            # What belongs to the model is fitted on the validation images, and judged on all others.
            None if subject.is_validation else read_calibration(finished.rundir.final),
        ),
        how={"processes": processes, "device": device, "mixed_precision": finished.recipe.mixed_precision},
    )


def write(evaluation: Evaluation) -> None:
    """`evaluation.json` and `evaluation.parquet` in the run dir, and of validation images `final/calibration.json`.

    A reader finds each as it was before or as it is now. Raises UserError where one cannot be written.
    """
    import pyarrow.parquet as pq

    from launcher.inference.prediction_columns import table_of

    # A class may be a folder whose name is not valid text; escaped, it still is JSON. Numbers go on one line, not on
    # one line each: a confusion matrix of 100 classes has 10,000.
    text = json_text(evaluation.to_json(), indent=1) + "\n"
    text = _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
    temperature = evaluation.details.get("calibration", {}).get("temperature", 1.0)
    table = table_of(evaluation.task, evaluation.outputs, evaluation.split, evaluation.names, temperature)
    file = evaluation.file
    try:
        write_atomic(file, text)
        file = evaluation.samples_file
        content = io.BytesIO()
        pq.write_table(table, content, compression="zstd")
        write_atomic(file, content.getvalue())
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror or error})") from error
    stored = calibration_to_store(evaluation.details) if evaluation.subject.is_validation else None
    if stored is not None:
        told = {"fitted_on": "val", "samples": len(evaluation.split), "names": list(evaluation.names)}
        write_calibration(evaluation.run.rundir.final, stored | told)
