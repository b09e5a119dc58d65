"""Whether probabilities mean what they say, and what makes them: a temperature for classes, thresholds for labels.

Kept in `final/calibration.json`, beside weights that stay as they are.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from launcher.errors import UserError
from launcher.files import write_json

BINS = 15
TEMPERATURES = (0.01, 100.0)
"""Where the best temperature is looked for. Without a mistake on the split it would be 0."""
FILE = "calibration.json"

Floats = npt.NDArray[np.float64]


def temperature_of(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """By which logits are divided so that the targets are likeliest (Guo et al., https://arxiv.org/abs/1706.04599).

    The negative log-likelihood is convex in 1 / temperature, so the sign of its slope leads to the one minimum.
    """
    logits = logits.double()
    wanted = logits.gather(1, targets[:, None]).squeeze(1)

    def slope(log_inverse: float) -> float:
        expected = ((logits * math.exp(log_inverse)).softmax(1) * logits).sum(1)
        return float((expected - wanted).mean())

    low, high = -math.log(TEMPERATURES[1]), -math.log(TEMPERATURES[0])
    if slope(0.0) == 0.0:  # nothing to gain, as of logits that are all the same
        return 1.0
    for _ in range(34):  # to 1e-9 of the logarithm
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def calibration(logits: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0) -> dict[str, Any]:
    """How well the probabilities of the classes that were chosen are calibrated.

    `ece` is the expected calibration error: how far confidence and accuracy of a bin are apart, as the mean over the
    samples; in 15 bins of equal width.
    """
    logits = logits.double() / temperature
    confidences, predicted = logits.softmax(1).max(1)
    right = (predicted == targets).double().numpy()
    bins = _bins(confidences.numpy(), right)
    gaps = [bin["samples"] * abs(bin["accuracy"] - bin["confidence"]) for bin in bins]
    return {
        "nll": float(F.cross_entropy(logits, targets)),
        "ece": sum(gaps) / len(targets),
        "bins": bins,
    }


def _bins(confidences: Floats, right: Floats) -> list[dict[str, Any]]:
    """The bins of the reliability diagram that have samples."""
    # Edges in float32, as torchmetrics has them, and a confidence of 1 in the last bin.
    edges = np.linspace(0, 1, BINS + 1, dtype=np.float32)
    places = np.minimum(np.searchsorted(edges, confidences.astype(np.float32), side="right") - 1, BINS - 1)
    return [
        {
            "from": index / BINS,
            "to": (index + 1) / BINS,
            "samples": int((places == index).sum()),
            "confidence": float(confidences[places == index].mean()),
            "accuracy": float(right[places == index].mean()),
        }
        for index in np.unique(places)
    ]


def best_threshold(probabilities: Floats, positive: npt.NDArray[np.bool_]) -> float:
    """The probability from which a label is given so that its F1 is best: in the middle between the samples on its two
    sides. 0.5 where F1 is the same, and where no sample has the label."""
    if not positive.any():
        return 0.5
    values, counts = np.unique(-probabilities, return_counts=True)  # from the highest
    order = np.argsort(-probabilities, kind="stable")
    given = np.cumsum(counts)
    right = np.cumsum(positive[order])[given - 1]
    f1 = 2 * right / (given + positive.sum())
    at_half = int((-values >= 0.5).sum())
    if at_half and f1[at_half - 1] == f1.max():
        return 0.5
    best = int(f1.argmax())
    lowest = -values[best]
    below = -values[best + 1] if best + 1 < len(values) else 0.0
    middle = (lowest + below) / 2
    return float(middle if below < middle else lowest)  # neighbouring numbers have no middle


def read_calibration(final: Path) -> dict[str, Any]:
    """What `final/calibration.json` says; empty where there is none. Raises UserError where it cannot be read."""
    file = final / FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); remove it, and evaluate again") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds no JSON object; remove it, and evaluate again")
    temperature, thresholds = found.get("temperature", 1.0), found.get("thresholds", [])
    if not _are_numbers([temperature]) or temperature == 0 or not _are_numbers(thresholds):
        raise UserError(f"{file}: temperature and thresholds must be positive numbers; remove it, and evaluate again")
    return dict(found)


def write_calibration(final: Path, content: dict[str, Any]) -> None:
    """Readers find the old file or the new one. Raises UserError where it cannot be written."""
    file = final / FILE
    try:
        write_json(file, content)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from error


def _are_numbers(values: Any) -> bool:
    if not isinstance(values, list):
        return False
    return all(isinstance(value, int | float) and math.isfinite(value) and value >= 0 for value in values)
