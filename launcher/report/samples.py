"""The predictions of an evaluation, one for each sample, read from its parquet file."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Kind = Literal["classification", "multi-label", "regression", "other"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Predictions in the order of the split; for tasks other than the built-in ones, only names and losses."""

    kind: Kind
    names: list[str]
    """The names as text; bytes that are not valid text are escaped."""
    exact: list[str]
    """The names as the image source has them."""
    loss: Floats
    """(N,), the plain loss of each sample."""
    classes: tuple[str, ...] = ()
    """The names of the classes, labels or targets, in the order of the outputs."""
    targets: npt.NDArray[Any]
    """Classes (N,); labels 0 or 1 (N, labels); values (N, targets), in the user's units."""
    predictions: npt.NDArray[Any]
    """Classes (N,); labels 0, or 1 from a probability of 0.5 on (N, labels); values (N, targets)."""
    probabilities: Floats
    """(N, classes or labels), as `predict` gives them: those of classes with the temperature, if one was fitted;
    (N, 0) for a regression."""

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def folder(self) -> str:
        """The folder with which all names begin, up to and including a slash."""
        return common_folder(self.names)

    def short(self, index: int) -> str:
        """Return the name of a sample without `folder`."""
        return self.names[index][len(self.folder) :]


def read_samples(file: Path, kind: str) -> Samples:
    """Read the samples of an evaluation.

    Raises OSError if the file cannot be read, and ValueError or KeyError if it is no such file.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    names = [str(name) for name in table["name"].to_pylist()]
    raw = table["name_bytes"].to_pylist()
    exact = [name if stored is None else os.fsdecode(stored) for name, stored in zip(names, raw, strict=True)]
    common: dict[str, Any] = {"kind": kind, "names": names, "exact": exact, "loss": _floats(table["loss"])}

    def several(what: str) -> Floats:
        columns = [column for column in table.column_names if column.startswith(f"{what}/")]
        return np.stack([_floats(table[c]) for c in columns], 1) if columns else np.zeros((len(names), 0))

    if kind == "classification":
        target = table["target"].combine_chunks()
        classes = tuple(map(str, target.dictionary.to_pylist()))
        place = {name: index for index, name in enumerate(classes)}
        predicted = table["prediction"].combine_chunks()
        where = np.array([place[str(name)] for name in predicted.dictionary.to_pylist()], dtype=np.int64)
        return Samples(
            **common,
            classes=classes,
            targets=target.indices.to_numpy().astype(np.int64),
            predictions=where[predicted.indices.to_numpy()],
            probabilities=several("probability"),
        )
    columns = [column.partition("/")[2] for column in table.column_names if column.startswith("prediction/")]
    if kind in ("multi-label", "regression") and columns:
        return Samples(
            **common,
            classes=tuple(columns),
            targets=several("target") if kind == "regression" else several("target") > 0.5,
            predictions=several("prediction"),
            probabilities=several("probability"),
        )
    nothing = np.zeros((len(names), 0))
    return Samples(**common | {"kind": "other"}, targets=nothing, predictions=nothing, probabilities=nothing)


def _floats(column: Any) -> Floats:
    return np.asarray(column.to_numpy(), dtype=np.float64)


def common_folder(names: list[str]) -> str:
    """Return the folder with which all file names begin, up to a slash; the rest tells the images apart."""
    if len(names) < 2:
        return ""
    pairs = zip(min(names), max(names), strict=False)
    shared = "".join(letter for letter, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return shared[: shared.rfind("/") + 1]
