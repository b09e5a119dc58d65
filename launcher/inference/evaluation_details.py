"""Details of an evaluation beyond its metrics: confused classes, calibration of probabilities, and largest errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from launcher.metrics.calibration import best_threshold, calibration, temperature_of
from launcher.metrics.task_formulas import kind_of
from launcher.recipe.abilities import PredictsValues
from launcher.recipe.protocols import BuiltTask

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LARGEST = 10
WHOLE_MATRIX = 100
"""Most classes for which the confusion matrix is written in full; for more, only the mistakes that occur are."""

Ints = npt.NDArray[np.int64]


def details_of(
    task: BuiltTask,
    outputs: torch.Tensor,
    targets: torch.Tensor,
    names: Sequence[str],
    name_of: Callable[[int], str],
    stored: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the details as JSON.

    `stored` is the calibration of the model, which is to be judged, or {} if it has none. None: it is fitted here.
    """
    kind = kind_of(task)
    outputs = outputs.float()
    if kind == "classification":
        return _classes(outputs, targets, names) | {"calibration": _calibration(outputs, targets, stored)}
    if kind == "multi-label":
        return {"labels": _labels(outputs.double().sigmoid().numpy(), targets.numpy() > 0.5, names, stored)}
    if kind == "regression" and isinstance(task, PredictsValues):
        errors = (task.values(outputs).double() - targets.double()).numpy()
        return {"residuals": {name: _residuals(errors[:, i], name_of) for i, name in enumerate(names)}}
    return {}


def calibration_to_store(details: dict[str, Any]) -> dict[str, Any] | None:
    """Return the calibration to store with the model, from details that were fitted; None if there is none."""
    if "calibration" in details:
        measured = details["calibration"]
        kept = {when: {name: measured[when][name] for name in ("nll", "ece")} for when in ("before", "after")}
        # The reason why none was fitted is stored, too, so that no reader takes 1 for a fitted temperature.
        reason = {"reason": measured["reason"]} if measured["reason"] else {}
        return {"temperature": measured["temperature"], **reason, **kept}
    if "labels" in details:
        labels = details["labels"].values()
        return {
            "thresholds": [label["threshold"] for label in labels],
            "positives": [label["support"] for label in labels],
        }
    return None


def confusion_matrix(predicted: Ints, targets: Ints, count: int) -> Ints:
    """Return the number of samples at [target, prediction], int64 (count, count)."""
    return np.bincount(targets * count + predicted, minlength=count * count).reshape(count, count)


def _classes(outputs: torch.Tensor, targets: torch.Tensor, names: Sequence[str]) -> dict[str, Any]:
    matrix = confusion_matrix(outputs.argmax(1).numpy(), targets.numpy(), len(names))
    if len(names) <= WHOLE_MATRIX:
        confusion: dict[str, Any] = {"rows": "target", "columns": "prediction", "matrix": matrix.tolist()}
    else:
        pairs = [(int(matrix[i, j]), names[i], names[j]) for i, j in np.argwhere(matrix) if i != j]
        confusion = {
            "mistaken": [{"target": a, "prediction": b, "samples": n} for n, a, b in sorted(pairs, key=lambda p: -p[0])]
        }
    right, predicted, support = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
    classes = {name: _scores(right[i], predicted[i], support[i]) for i, name in enumerate(names)}
    return {"classes": classes, "confusion": confusion}


def _scores(right: int, predicted: int, support: int) -> dict[str, Any]:
    """Return precision, recall, F1 and support, or None for one that is not defined.

    The precision of a class that was never predicted, for example, is not defined.
    """
    return {
        "precision": float(right / predicted) if predicted else None,
        "recall": float(right / support) if support else None,
        "f1": float(2 * right / (predicted + support)) if predicted + support else None,
        "support": int(support),
    }


def _calibration(outputs: torch.Tensor, targets: torch.Tensor, stored: dict[str, Any] | None) -> dict[str, Any]:
    """Return the calibration of probabilities before and after division by the temperature.

    The key "fitted" says on which samples the temperature was fitted. "never" comes with a reason, unless the
    validation images were never evaluated.
    """
    if stored is None:
        fitted = temperature_of(outputs, targets)
        temperature, reason, where = fitted.value, fitted.reason, "on these samples"
    else:
        temperature, reason = float(stored.get("temperature", 1.0)), str(stored.get("reason", ""))
        where = "on the validation images"
    return {
        "temperature": temperature,
        "fitted": "never" if reason or stored == {} else where,
        "reason": reason,
        "in_table": True,
        "before": calibration(outputs, targets),
        "after": calibration(outputs, targets, temperature),
    }


def _labels(
    probabilities: npt.NDArray[np.float64],
    positive: npt.NDArray[np.bool_],
    names: Sequence[str],
    stored: dict[str, Any] | None,
) -> dict[str, Any]:
    labels = {}
    for i, name in enumerate(names):
        column, truth = probabilities[:, i], positive[:, i]
        threshold = best_threshold(column, truth) if stored is None else stored.get("thresholds", [0.5] * len(names))[i]
        at_half, at_threshold = column > 0.5, column >= threshold
        labels[name] = {
            "support": int(truth.sum()),
            "at_0.5": _scores((at_half & truth).sum(), at_half.sum(), truth.sum()),
            "threshold": threshold,
            "at_threshold": _scores((at_threshold & truth).sum(), at_threshold.sum(), truth.sum()),
        }
    return labels


def _residuals(errors: npt.NDArray[np.float64], name_of: Callable[[int], str]) -> dict[str, Any]:
    """Return statistics of prediction - target, in the user's units, and the largest of these errors."""
    largest = np.argsort(-np.abs(errors), kind="stable")[:LARGEST]
    quantiles = np.quantile(errors, QUANTILES).tolist()
    return {
        "mean": float(errors.mean()),
        "standard_deviation": float(errors.std()),
        "quantiles": {f"{share:g}": value for share, value in zip(QUANTILES, quantiles, strict=True)},
        "largest": [{"index": int(i), "name": name_of(int(i)), "residual": float(errors[i])} for i in largest],
    }
