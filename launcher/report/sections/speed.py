"""The time that a run took, by kind of work, and the speed of each phase."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from launcher.report.facts import Facts
from launcher.report.page import Section
from launcher.text import duration

PARTS = ("before the first step", "training", "waiting for images", "validation and saving")


@dataclasses.dataclass
class Spent:
    """The seconds that a phase took, by kind of work."""

    name: str
    epochs: int = 0
    before: float = 0.0
    training: float = 0.0
    waiting: float = 0.0
    after: float = 0.0
    rates: list[float] = dataclasses.field(default_factory=list)
    """Images per second in each epoch."""

    @property
    def seconds(self) -> float:
        """The seconds in all."""
        return self.before + self.training + self.waiting + self.after


def section(facts: Facts) -> Section | None:
    """Build the section, or return None for a run without timing."""
    spent = spent_in(facts)
    total = sum(phase.seconds for phase in spent)
    if not total:
        return None
    parts = [sum(values) for values in zip(*((p.before, p.training, p.waiting, p.after) for p in spent), strict=True)]
    return Section(
        "speed",
        "Where the time went",
        {
            "total": duration(total),
            "before": any(phase.before for phase in spent),
            "parts": [
                {"name": name, "share": round(100 * part / total, 2), "seconds": duration(part), "look": f"part-{i}"}
                for i, (name, part) in enumerate(zip(PARTS, parts, strict=True))
                if part / total > 0.0005
            ],
            "rows": [
                {
                    "name": phase.name,
                    "epochs": phase.epochs,
                    "time": duration(phase.seconds),
                    "rate": f"{statistics.median(phase.rates):,.0f}" if phase.rates else "–",
                    "wait": f"{100 * phase.waiting / max(1e-9, phase.training + phase.waiting):.0f} %",
                    "before": duration(phase.before) if phase.before else "–",
                }
                for phase in spent
            ],
        },
    )


def spent_in(facts: Facts) -> list[Spent]:
    """Return the time spent in each phase; an epoch that was trained again counts with its last time."""
    trained = facts.environment.get("data", {}).get("train_samples", 0)
    phases: dict[Any, Spent] = {}
    last: dict[Any, dict[str, Any]] = {}
    for row in facts.timing:
        key = row.get("number", row.get("phase"))
        phase = phases.setdefault(key, Spent(str(row.get("phase", ""))))
        if "epoch" in row:
            last[key, row["epoch"]] = row
        else:  # the features of frozen layers, or a head in closed form
            phase.before += row["seconds"]
    for (key, _), row in last.items():
        phase, rate = phases[key], row.get("images_per_second", 0.0)
        phase.epochs += 1
        stepping = min(row["seconds"], trained / rate) if rate else 0.0
        waiting = stepping * row.get("waited_share", 0.0)
        phase.waiting += waiting
        phase.training += stepping - waiting
        phase.after += row["seconds"] - stepping
        if rate:
            phase.rates.append(rate)
    return list(phases.values())
