"""Result of an evaluation, and the files that it leaves in the run dir."""

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
"""Relative difference up to which metrics count as the same: another number of processes rounds differently."""

_NUMBERS = re.compile(r"\[\n\s*([-+.\dEe,\s]+?)\n\s*\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """The images of an evaluation, and how the network sees them."""

    split_name: str
    data: Path | None = None
    """Folder or table that takes the place of a split of the run."""
    flips: bool = False

    def __str__(self) -> str:
        return (str(self.data) if self.data else self.split_name) + (", with flips" if self.flips else "")

    @property
    def is_validation(self) -> bool:
        """Return whether these are the plain validation images, on which calibration is fitted."""
        return self.data is None and self.split_name == "val" and not self.flips

    @property
    def stem(self) -> str:
        """Return the name of the files, without the suffix."""
        name = "" if self.split_name == "val" else f"-{self.split_name}"
        if self.data is not None:
            name = f"-data-{self.data.absolute().name}"  # with its suffix, to tell new.csv from new/
        return f"evaluation{name}" + ("-flips" if self.flips else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's outputs on a split, with their metrics."""

    run: FinishedRun
    subject: Subject
    split: Split
    names: tuple[str, ...]
    """Names of classes, labels or targets."""
    task: BuiltTask
    outputs: torch.Tensor
    """Outputs, float32 (samples, outputs), on the CPU, in the order of the split."""
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    details: dict[str, Any]
    """Result of `evaluation_details.details_of`."""
    how: dict[str, Any]
    """Number of processes, device, and precision of the evaluation."""

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
        """Return the file to write: it replaces an earlier evaluation, but not one of other data of the same name."""
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
        """Return the run's own value of each validation metric that now differs, because something has changed."""
        if not self.subject.is_validation:
            return {}
        then = self.run.metrics
        return {
            name: then[name]
            for name, value in self.metrics.items()
            if name in then and not _same(name, value, then[name])
        }


def _same(name: str, value: float, then: float) -> bool:
    """Return whether two values of a metric are the same.

    Errors in the user's units may be of any size, so they are compared relative to it; all other metrics are close to 1
    in size.
    """
    in_units = name.partition("/")[0] in ("mae", "rmse")
    both_nan = math.isnan(value) and math.isnan(then)
    return both_nan or abs(value - then) <= SAME * max(0.0 if in_units else 1.0, abs(then))


def _content(split: Split) -> str:
    """Return a hash of names and targets, which tells whether two evaluations are of the same images."""
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
    """Return the evaluation of outputs, float32 (samples, num_outputs): metrics, their intervals, and details."""
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
            # The model's calibration is fitted on the validation images, and judged on all others.
            None if subject.is_validation else read_calibration(finished.rundir.final),
        ),
        how={"processes": processes, "device": device, "mixed_precision": finished.recipe.mixed_precision},
    )


def write(evaluation: Evaluation) -> None:
    """Write `evaluation.json` and `evaluation.parquet`, and for validation images also `final/calibration.json`.

    The files are in the run dir; a reader finds either the old or the new version of each. Raises UserError if one
    cannot be written.
    """
    import pyarrow.parquet as pq

    from launcher.inference.prediction_columns import table_of

    # A class may be a folder whose name is not valid text; escaped, it still is JSON. A list of numbers goes on one
    # line: a confusion matrix of 100 classes has 10,000 numbers.
    text = json_text(evaluation.to_json(), indent=1) + "\n"
    text = _NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text)
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
        fitted = {"fitted_on": "val", "samples": len(evaluation.split), "names": list(evaluation.names)}
        write_calibration(evaluation.run.rundir.final, stored | fitted)
