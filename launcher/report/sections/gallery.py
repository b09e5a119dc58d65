"""Single images worth a look: the most confident mistakes, and the images the network is least certain of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from launcher.report.facts import Facts
from launcher.report.formats import percent
from launcher.report.page import Section
from launcher.report.samples import Ints, Samples
from launcher.report.thumbnails import Thumbnail
from launcher.text import level, listed, plural

MISTAKES, UNCERTAIN = 24, 12
WORST, UNSURE = "Most confident mistakes", "Least certain"


@dataclasses.dataclass(frozen=True)
class Card:
    """An image with its caption."""

    name: str
    short: str
    thumbnail: Thumbnail | None
    truth: str
    prediction: str
    how: str
    right: bool
    faults: tuple[tuple[str, str], ...] = ()
    """(kind of mistake, labels) of each, for a multi-label task."""


@dataclasses.dataclass(frozen=True)
class Shelf:
    """A row of cards with a title and an explanation."""

    title: str
    explained: str
    cards: list[Card]
    count: str = ""


def section(facts: Facts) -> Section | None:
    """Build the section, or return None for an evaluation without predictions."""
    samples = facts.samples
    if samples is None or len(samples) == 0:
        return None
    shelves_of = {"classification": _of_classes, "multi-label": _of_labels}.get(samples.kind, _of_losses)
    return Section(
        "gallery",
        "Images worth a look",
        {"shelves": shelves_of(facts, samples), "thumbnails": facts.thumbnails, "note": _probabilities(facts)},
    )


def _probabilities(facts: Facts) -> str:
    """Say whether the probabilities in this section are calibrated."""
    scaling = facts.evaluation.get("calibration")
    if not scaling and facts.kind != "multi-label":
        return ""
    # Older tables hold uncalibrated ones.
    if not scaling or scaling["fitted"] == "never" or not scaling.get("in_table"):
        return "Probabilities are not calibrated."
    return (
        f"Probabilities are calibrated with temperature {scaling['temperature']:.4g}, as those of predict and exports."
    )


def shown(samples: Samples) -> list[int]:
    """Return the indices of the samples that the gallery of a classification shows."""
    wrong, unsure = _wrong_and_unsure(samples)
    return sorted({*wrong[:MISTAKES].tolist(), *unsure.tolist()})


def _wrong_and_unsure(samples: Samples) -> tuple[Ints, Ints]:
    """Return all mistakes, the most confident first, and the UNCERTAIN least certain predictions."""
    confidence = samples.probabilities.max(1)
    wrong = np.flatnonzero(samples.targets != samples.predictions)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    two = -np.partition(-samples.probabilities, 1, axis=1)[:, :2]
    margin = two[:, 0] - two[:, 1]
    return wrong, np.argsort(margin, kind="stable")[:UNCERTAIN]


def _card(
    facts: Facts,
    samples: Samples,
    index: int,
    truth: str,
    prediction: str,
    how: str,
    right: bool,
    faults: tuple[tuple[str, str], ...] = (),
) -> Card:
    thumbnail = facts.thumbnails.of(index)
    return Card(samples.names[index], samples.short(index), thumbnail, truth, prediction, how, right, faults)


def _of_classes(facts: Facts, samples: Samples) -> list[Shelf]:
    confidence = samples.probabilities.max(1)
    wrong, unsure = _wrong_and_unsure(samples)

    def card(index: int, how: str) -> Card:
        target, guess = int(samples.targets[index]), int(samples.predictions[index])
        return _card(facts, samples, index, samples.classes[target], samples.classes[guess], how, target == guess)

    def second(index: int) -> str:
        order = np.argsort(-samples.probabilities[index], kind="stable")[:2]
        return " or ".join(f"{samples.classes[i]} {percent(samples.probabilities[index, i])} %" for i in order)

    shelves = []
    if len(wrong):
        explained = "Wrong, with the highest probability for the wrong class: the place to look for wrong labels."
        cards = [card(int(i), f"{percent(confidence[i])} %") for i in wrong[:MISTAKES]]
        shelves.append(Shelf(WORST, explained, cards, _count(len(wrong), MISTAKES, "mistake")))
    cards = [card(int(i), second(int(i))) for i in unsure]
    return [*shelves, Shelf(UNSURE, "The two likeliest classes are nearly equal.", cards)]


def _of_labels(facts: Facts, samples: Samples) -> list[Shelf]:
    thresholds = thresholds_of(facts, samples)
    chosen = samples.probabilities >= thresholds
    wrong = chosen != samples.targets
    # The distance beyond the threshold, as a share of the way to 0 or 1.
    far = np.where(chosen, (samples.probabilities - thresholds) / (1 - thresholds + 1e-9), 0.0)
    far = np.where(~chosen, (thresholds - samples.probabilities) / (thresholds + 1e-9), far)
    worst = np.where(wrong, far, -1).max(1)
    order = [int(i) for i in np.argsort(-worst, kind="stable") if worst[i] >= 0]
    least = far.min(1)
    unsure = [int(i) for i in np.argsort(least, kind="stable")[:UNCERTAIN]]

    def named(index: int, which: Sequence[int]) -> str:
        """Name labels with their probabilities, the farthest from their thresholds first."""
        order = sorted(which, key=lambda i: -far[index, i])
        return listed([f"{samples.classes[i]} {percent(samples.probabilities[index, i], 0)} %" for i in order])

    def card(index: int, how: str = "") -> Card:
        truth = samples.targets[index]
        has = ", ".join(samples.classes[i] for i in np.flatnonzero(truth)) or "no label"
        missed, extra = np.flatnonzero(truth & ~chosen[index]).tolist(), np.flatnonzero(~truth & chosen[index]).tolist()
        faults = [("missed", named(index, missed))] if missed else []
        faults += [("wrongly given", named(index, extra))] if extra else []
        return _card(facts, samples, index, has, has, how, not faults, tuple(faults))

    def nearest(index: int) -> str:
        i = int(far[index].argmin())
        return f"{samples.classes[i]}: {samples.probabilities[index, i]:.3f}, given from {thresholds[i]:.3f}"

    shelves = []
    if order:
        explained = "Images with a label that is given or missed wrongly, the farthest beyond its threshold first."
        count = _count(len(order), MISTAKES, "image with a mistake", "images with a mistake")
        shelves.append(Shelf(WORST, explained, [card(i) for i in order[:MISTAKES]], count))
    cards = [dataclasses.replace(card(i, nearest(i)), faults=()) for i in unsure]
    return [*shelves, Shelf(UNSURE, "A label is nearest to its threshold.", cards)]


def thresholds_of(facts: Facts, samples: Samples) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return the probability from which on each label is given, 0.5 if the evaluation has no thresholds."""
    labels = list(facts.evaluation.get("labels", {}).values())
    thresholds = [label["threshold"] for label in labels]
    return np.array(thresholds if len(thresholds) == len(samples.classes) else [0.5] * len(samples.classes))


def _of_losses(facts: Facts, samples: Samples) -> list[Shelf]:
    order = np.argsort(-samples.loss, kind="stable")[:MISTAKES]

    def card(index: int) -> Card:
        truth = prediction = ""
        if samples.kind == "regression":
            names = samples.classes if len(samples.classes) > 1 else ("",)
            spreads = samples.targets.std(axis=0)
            truth, prediction = (
                ", ".join(f"{n} {level(v, s)}".strip() for n, v, s in zip(names, values[index], spreads, strict=True))
                for values in (samples.targets, samples.predictions)
            )
        return _card(facts, samples, index, truth, prediction, f"loss {samples.loss[index]:.3g}", False)

    explained, count = "Where the prediction is farthest from the truth.", _count(len(samples), MISTAKES, "image")
    return [Shelf("Largest losses", explained, [card(int(i)) for i in order], count)]


def _count(total: int, shown: int, one: str, many: str | None = None) -> str:
    return f"{shown} of {plural(total, one, many)}" if total > shown else plural(total, one, many)
