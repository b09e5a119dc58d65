"""Calibration of probabilities: its measurement, a temperature for classes, and thresholds for labels.

It is kept in `final/calibration.json`, beside the weights, which stay as they are.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from launcher.errors import UserError
from launcher.files import write_json
from launcher.text import listed, one_line, plural

BINS = 15
TEMPERATURES = (0.01, 100.0)
"""Range in which the best temperature is searched for; one outside of it is not used."""
FEWEST = 10
"""Fewest images to rest on: with fewer, no temperature is fitted, and with fewer that have a label, the threshold of
the label is reported."""
FILE = "calibration.json"

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Temperature:
    """A temperature, with the reason if none could be fitted and it is 1."""

    value: float
    reason: str = ""
    """Reason why none could be fitted; empty for a fitted one."""


def temperature_of(logits: torch.Tensor, targets: torch.Tensor) -> Temperature:
    """Fit the temperature that makes the targets likeliest when the logits are divided by it.

    The method is that of Guo et al. (https://arxiv.org/abs/1706.04599), with a bound on how confident n samples can
    make the probabilities. Without a mistake among the samples the likeliest temperature is 0, which makes every
    probability 100 %, so none is fitted. With few mistakes it would still be too low, so a sample counts as one of its
    class with a weight of (n + 1) / (n + 2) only, and as one of the other classes with the rest: the rule of
    succession, as in Platt, Probabilistic Outputs for Support Vector Machines, 1999, section 2.2.

    The negative log-likelihood is convex in 1 / temperature, so the sign of its slope leads to the only minimum.
    """
    logits, count = logits.double(), len(targets)
    mistakes = int((logits.argmax(1) != targets).sum())
    if count < FEWEST:
        return Temperature(1.0, f"{plural(count, 'image is', 'images are')} too few for one (fewer than {FEWEST})")
    if not mistakes:
        return Temperature(1.0, f"none of the {count} images is a mistake, so they do not say how sure is too sure")
    others = (1 / (count + 2)) / (logits.shape[1] - 1)
    truth = torch.full_like(logits, others).scatter_(1, targets[:, None], (count + 1) / (count + 2))
    goal = (truth * logits).sum(1)

    def slope(log_inverse: float) -> float:
        expected = ((logits * math.exp(log_inverse)).softmax(1) * logits).sum(1)
        return float((expected - goal).mean())

    low, high = -math.log(TEMPERATURES[1]), -math.log(TEMPERATURES[0])
    if not slope(low) < 0 < slope(high):
        wrong = "is a mistake" if mistakes == 1 else "are mistakes"
        return Temperature(1.0, f"the outputs say too little of the classes ({mistakes} of {count} {wrong})")
    for _ in range(34):  # until the logarithm is known to 1e-9
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return Temperature(math.exp(-(low + high) / 2))


def calibration(logits: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0) -> dict[str, Any]:
    """Measure how well the probabilities of the predicted classes are calibrated.

    `ece` is the expected calibration error, with 15 bins of equal width: the mean over the samples of the distance
    between the confidence and the accuracy of their bin.
    """
    logits = logits.double() / temperature
    confidences, predicted = logits.softmax(1).max(1)
    right = (predicted == targets).double().numpy()
    bins = _bins(confidences.numpy(), right)
    gaps = [bin["samples"] * abs(bin["accuracy"] - bin["confidence"]) for bin in bins]
    return {"nll": float(F.cross_entropy(logits, targets)), "ece": sum(gaps) / len(targets), "bins": bins}


def _bins(confidences: Floats, right: Floats) -> list[dict[str, Any]]:
    """Return those bins of the reliability diagram that have samples."""
    # The edges are float32, as in torchmetrics, and a confidence of 1 is in the last bin.
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
    """Return the probability at which to start giving a label so that its F1 is best.

    It lies in the middle between the samples on its two sides. It is 0.5 if that gives the same F1, and if no sample
    has the label.
    """
    if not positive.any():
        return 0.5
    values, counts = np.unique(-probabilities, return_counts=True)  # from the highest probability on
    order = np.argsort(-probabilities, kind="stable")
    claimed = np.cumsum(counts)
    right = np.cumsum(positive[order])[claimed - 1]
    f1 = 2 * right / (claimed + positive.sum())
    at_half = int((-values >= 0.5).sum())
    if at_half and f1[at_half - 1] == f1.max():
        return 0.5
    best = int(f1.argmax())
    lowest = -values[best]
    below = -values[best + 1] if best + 1 < len(values) else 0.0
    middle = (lowest + below) / 2
    return float(middle if below < middle else lowest)  # adjacent floats have no middle


def few_positives(positives: Mapping[str, int]) -> str:
    """Name the labels whose thresholds rest on fewer than FEWEST positive images; return "" if there are none."""
    few = sorted((count, name) for name, count in positives.items() if count < FEWEST)
    return listed([f"{one_line(name)} (on {count})" for count, name in few], 5)


def read_calibration(final: Path) -> dict[str, Any]:
    """Return the content of `final/calibration.json`, empty if there is none; raise UserError if it cannot be read."""
    file = final / FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({error}); remove it, and evaluate again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds no JSON object; remove it, and evaluate again")
    temperature, thresholds = content.get("temperature", 1.0), content.get("thresholds", [])
    if not _are_numbers([temperature]) or temperature == 0 or not _are_numbers(thresholds):
        raise UserError(f"{file}: temperature and thresholds must be positive numbers; remove it, and evaluate again")
    positives = content.get("positives", [])
    if not isinstance(positives, list) or not all(type(count) is int for count in positives):
        raise UserError(f"{file}: positives must be whole numbers; remove it, and evaluate again")
    return content


def write_calibration(final: Path, content: dict[str, Any]) -> None:
    """Write `final/calibration.json` so that readers find either the old file or the new one.

    Raises UserError if it cannot be written.
    """
    file = final / FILE
    try:
        write_json(file, content)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from error


def _are_numbers(values: Any) -> bool:
    if not isinstance(values, list):
        return False
    return all(isinstance(value, int | float) and 0 <= value <= sys.float_info.max for value in values)
