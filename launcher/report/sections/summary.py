"""The summary at the top: what was trained on which data, the result, the time, and what is worth knowing first."""

from __future__ import annotations

import datetime
import math
from collections import Counter

import numpy as np

from launcher.files import metrics_from_json
from launcher.report.charts import number
from launcher.report.facts import Epoch, Facts
from launcher.report.formats import SHARES, metric_name, part_name, percent, shown, unit_of, value_of
from launcher.report.page import Section
from launcher.report.sections.speed import spent_in
from launcher.text import duration, plural
from launcher.text import number as measured
from launcher.training.best import rank

OTHER_METRICS = 3
"""Metrics shown besides the monitored one; evaluation.json has all of them."""
FIRST = ("macro_f1", "auroc", "rmse", "r2", "exact_match", "loss")
"""Those that a reader would miss most, in this order."""
WAITED_TOO_LONG = 0.15
"""The share of the whole time from which on waiting for images is reported."""


def section(facts: Facts) -> Section:
    """Build the section."""
    metric = facts.monitor
    value, interval = facts.metrics.get(metric), facts.interval(metric)
    kept = facts.kept
    where = f"{kept.phase}, epoch {kept.in_phase}" if kept else ""
    if kept:
        where = ("the best: " if facts.recipe.get("final_weights", "best") == "best" else "the last: ") + where
    return Section(
        "summary",
        "Result",
        {
            "metric": metric_name(metric),
            "value": shown(metric, value) if value is not None else "–",
            "unit": unit_of(metric),
            "low": shown(metric, interval[0]) if interval else None,
            "high": shown(metric, interval[1]) if interval else None,
            "whisker": _whisker(metric, value, interval),
            "on": plural(samples_in(facts), "validation image"),
            "where": where,
            "sentence": sentence(facts),
            "when": _when(facts),
            "tiles": _tiles(facts),
            "findings": findings(facts),
            "notes": _notes(facts),
        },
    )


def samples_in(facts: Facts) -> int:
    """Return the number of validation images."""
    samples = facts.evaluation.get("samples") or facts.environment.get("data", {}).get("val_samples")
    return int(samples or 0)


def sentence(facts: Facts) -> str:
    """Say what was trained on which data, in one sentence."""
    recipe, data = facts.recipe, facts.environment.get("data", {})
    plan = recipe.get("freeze_plan")
    named = [str(phase.get("name")) for phase in plan if isinstance(phase, dict)] if isinstance(plan, list) else []
    phases = " then ".join(dict.fromkeys(named))
    trained = plural(int(data.get("train_samples", 0)), "training image")
    kinds = {"classification": ("class", "classes"), "multi-label": ("label", "labels")}
    of = plural(len(facts.names), *kinds.get(facts.kind, ("target", "targets")))
    return f"{part_name(recipe.get('backbone'))} on {part_name(recipe.get('data'))}: {trained}, {of}; {phases}"


def _whisker(metric: str, value: float | None, interval: tuple[float, float] | None) -> dict[str, float] | None:
    """Place the interval on a scale from 0 to 1, in per cent of its length; return None for metrics not on it."""
    if value is None or interval is None or metric not in SHARES | {"macro_f1", "micro_f1", "map", "auroc"}:
        return None
    places = {"low": interval[0], "high": interval[1], "at": value}
    return {name: round(100 * min(1.0, max(0.0, place)), 2) for name, place in places.items()}


def _when(facts: Facts) -> str:
    try:
        ended = (facts.path / "final/metrics.json").stat().st_mtime
    except OSError:
        return ""
    return f"{datetime.datetime.fromtimestamp(ended):%Y-%m-%d %H:%M}"


def _tiles(facts: Facts) -> list[dict[str, str]]:
    tiles = [{"label": "training took", "value": duration(facts.seconds), "note": _pace(facts)}]
    others = [name for name in facts.metrics if "/" not in name and name != facts.monitor]
    others.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    for name in others[:OTHER_METRICS]:
        value = facts.metrics[name]
        interval = facts.interval(name)
        note = f"{shown(name, interval[0])} to {shown(name, interval[1])}" if interval else ""
        tiles.append({"label": metric_name(name), "value": value_of(name, value), "note": note})
    tiles += _on_test(facts)
    scaling = facts.evaluation.get("calibration")
    if scaling:
        note = "no temperature fitted" if scaling.get("reason") else f"with temperature {scaling['temperature']:.3g}"
        tiles.append({"label": "calibration error", "value": measured(scaling["after"]["ece"]), "note": note})
    phases = facts.plan.get("phases")
    if phases:
        most = max(phases, key=lambda phase: phase["trainable_parameters"])
        trained, note = _short(most["trainable_parameters"]), f"of {_short(most['total_parameters'])}"
        tiles.append({"label": "trained parameters", "value": trained, "note": note})
    return tiles


def _on_test(facts: Facts) -> list[dict[str, str]]:
    """Return a tile with the monitored metric on the test images, by which nothing was chosen or fitted."""
    metrics = metrics_from_json(facts.test.get("metrics", {}))
    name = facts.monitor
    if name not in metrics:
        return []
    ends = facts.test.get("intervals", {}).get("of", {}).get(name)
    note = f"{shown(name, ends[0])} to {shown(name, ends[1])}; " if ends else ""
    note += plural(int(facts.test.get("samples", 0)), "image")
    return [{"label": f"{metric_name(name)} on test", "value": value_of(name, metrics[name]), "note": note}]


def _pace(facts: Facts) -> str:
    machine = facts.plan.get("machine", {})
    epochs = plural(len(facts.epochs), "epoch")
    if not machine:
        return epochs
    return f"{epochs}, {plural(int(machine['processes']), 'process', 'processes')}, {machine['device']}"


def _short(value: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return str(value)


def findings(facts: Facts) -> list[str]:
    """Return sentences on what to look at first; each follows from a number in the report."""
    texts: list[str] = []
    rated = [(scores["f1"], name, scores) for name, scores in facts.scores.items() if scores.get("f1") is not None]
    if len(rated) > 1:
        worst, name, scores = min(rated, key=lambda row: row[0])
        if worst < 1:
            texts.append(
                f"Weakest {'label' if 'labels' in facts.evaluation else 'class'}: {name}, F1 {worst:.3f} "
                f"(recall {percent(scores['recall'])} % of {plural(scores['support'], 'image')})."
            )
    samples = facts.samples
    if facts.kind == "classification" and samples is not None:
        wrong = samples.targets != samples.predictions
        if not wrong.any():
            texts.append("No validation image is classified wrongly.")
        else:
            pairs = zip(samples.targets[wrong].tolist(), samples.predictions[wrong].tolist(), strict=True)
            ((target, predicted), most) = Counter(pairs).most_common(1)[0]
            texts.append(
                f"{plural(int(wrong.sum()), 'image')} of {len(samples):,} {'is' if wrong.sum() == 1 else 'are'} "
                f"classified wrongly; most often {samples.classes[target]} as {samples.classes[predicted]} ({most})."
            )
    if samples is not None and samples.kind == "regression" and len(samples):
        for column, name in enumerate(samples.classes[:3]):
            errors = np.abs(samples.predictions[:, column] - samples.targets[:, column])
            texts.append(
                f"Half of the predictions of {name} are within {number(float(np.median(errors)))} of the target, "
                f"95 % within {number(float(np.quantile(errors, 0.95)))}."
            )
    return texts + _of_training(facts)


def _of_training(facts: Facts) -> list[str]:
    texts = []
    if sentence := _of_the_best_epoch(facts):
        texts.append(sentence)
    spent = spent_in(facts)
    waited = sum(phase.waiting for phase in spent) / (sum(phase.seconds for phase in spent) or 1.0)
    if waited > WAITED_TOO_LONG:
        texts.append(f"{100 * waited:.0f} % of the time went into waiting for images.")
    if facts.skipped:
        they = "it" if len(facts.skipped) == 1 else "they"
        texts.append(f"Left out of the data, because {they} could not be read: {plural(len(facts.skipped), 'file')}.")
    return texts


def _of_the_best_epoch(facts: Facts) -> str | None:
    """Say where the best of all epochs lies, or return None if that means nothing."""
    metric, mode = facts.monitor, facts.mode

    def rank_of_epoch(epoch: Epoch) -> tuple[float, float]:
        return rank(facts.validated(epoch, metric), facts.validated(epoch, "loss"), mode)

    ranked = [epoch for epoch in facts.epochs if rank_of_epoch(epoch)[0] > -math.inf]
    if len(ranked) < 2:
        return None
    best = max(ranked, key=lambda epoch: (rank_of_epoch(epoch), epoch.count))
    name, value = metric_name(metric), facts.validated(best, metric)
    assert value is not None
    later = [epoch for epoch in ranked if epoch.number > best.number]
    if later:
        best_later = max(later, key=lambda epoch: (rank_of_epoch(epoch), epoch.count))
        reached = facts.validated(best_later, metric)
        assert reached is not None
        if reached == value:
            return (
                f"The best epoch is one of {best.phase}; {best_later.phase} reached the same {name} with a higher loss."
            )
        return (
            f"The best epoch is one of {best.phase} ({name} {value_of(metric, value)}); what was trained after it came "
            f"to {value_of(metric, reached)} at best."
        )
    if best.count == facts.epochs[-1].count and rank_of_epoch(best)[0] > max(
        rank_of_epoch(epoch)[0] for epoch in ranked if epoch is not best
    ):
        return "The best epoch is the last one: longer training may help."
    return None


def _notes(facts: Facts) -> list[str]:
    return [*facts.notes, *filter(None, [facts.thumbnails.reason])]
