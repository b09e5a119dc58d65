"""Predictions as columns of a table, which are the same in `evaluation.parquet` and in the output of `predict`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F

from launcher.metrics.task_formulas import kind_of
from launcher.recipe.abilities import PredictsValues
from launcher.recipe.protocols import BuiltTask, Split
from launcher.text import encodable


def name_columns(names: Sequence[str]) -> dict[str, Any]:
    """Return the columns `name`, as text, and `name_bytes`: the name itself if it is no valid text, otherwise null."""
    texts = [encodable(name) for name in names]
    exact = [None if text == name else os.fsencode(name) for text, name in zip(texts, names, strict=True)]
    return {"name": pa.array(texts, pa.string()), "name_bytes": pa.array(exact, pa.binary())}


def table_of(
    task: BuiltTask, outputs: torch.Tensor, split: Split, names: Sequence[str], temperature: float
) -> pa.Table:
    """Return a table with a row for each sample, in the order of the split.

    Its columns for classification are target, prediction, and probability/CLASS; for multi-label target/LABEL,
    prediction/LABEL (1 if the probability is above 0.5, as in the metrics), and probability/LABEL; for regression
    target/NAME and prediction/NAME, float64 in the user's units; and for another task target and output/NAME.
    Probabilities of classes are those of the outputs divided by `temperature`, as in `predict` and exports. `loss` is
    the plain loss of the sample; its mean is the metric.
    """
    columns: dict[str, Any] = {"index": pa.array(range(len(split)), pa.int64())}
    columns |= name_columns([split.images.name(index) for index in range(len(split))])
    targets, outputs = torch.as_tensor(split.targets), outputs.float()
    kind, texts = kind_of(task), [encodable(name) for name in names]
    if kind == "classification":
        columns["target"] = _named(targets, texts)
        columns["prediction"] = _named(outputs.argmax(1), texts)
        columns |= _each("probability", texts, (outputs / temperature).softmax(1))
        losses = F.cross_entropy(outputs, targets, reduction="none")
    elif kind == "multi-label":
        probabilities = outputs.sigmoid()
        columns |= _each("target", texts, targets)
        columns |= _each("prediction", texts, (probabilities > 0.5).to(torch.int8))
        columns |= _each("probability", texts, probabilities)
        losses = F.binary_cross_entropy_with_logits(outputs, targets.float(), reduction="none").mean(1)
    else:
        losses = task.loss(outputs, targets).float()
        columns |= _each("target", texts, targets) if targets.ndim == 2 else {"target": targets.numpy()}
        if isinstance(task, PredictsValues):
            columns |= _each("prediction", texts, task.values(outputs))
        else:
            columns |= _each("output", texts, outputs)
    columns["loss"] = losses.numpy()
    return pa.table(columns)


def _named(indices: torch.Tensor, texts: Sequence[str]) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(indices.numpy(), pa.int32()), pa.array(texts, pa.string()))


def _each(what: str, texts: Sequence[str], values: torch.Tensor) -> dict[str, Any]:
    """Return a column for each output, named by its index if there are not as many outputs as names.

    With a user's own task, the number of outputs may differ from that of the data's names.
    """
    names = texts if len(texts) == values.shape[1] else [str(index) for index in range(values.shape[1])]
    return {f"{what}/{name}": values[:, index].numpy() for index, name in enumerate(names)}
