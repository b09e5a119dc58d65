"""The means to repeat a run: the command, the recipe, the versions and the machine."""

from __future__ import annotations

import json
from typing import Any

from launcher.recipe.dotted import flat
from launcher.report.facts import Facts
from launcher.report.page import Section
from launcher.training.command import PYTHON, Command


def section(facts: Facts) -> Section:
    """Build the section."""
    environment, machine = facts.environment, facts.plan.get("machine", {})
    lines = []
    if machine:
        lines.append(("machine", f"{machine['processes']} × {machine['device_name'] or machine['device']}"))
        lines.append(("precision", _precision(facts, machine)))
        factors = f"{machine['processes']} × {machine['micro_batch_size']} × {machine['accumulation_steps']}"
        batch = f"{facts.recipe.get('batch_size')} = {factors} (processes × micro-batch × accumulation)"
        lines.append(("batch", batch))
        lines.append(("data workers", f"{machine['data_workers']} per process"))
    lines.append(("platform", environment.get("platform", "–")))
    versions = {"python": environment.get("python", "–")} | environment.get("packages", {})
    lines.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    settings = [(name, value) for name, value in flat(facts.recipe).items() if name != "type"]
    return Section(
        "environment",
        "To repeat it",
        {
            "folder": environment.get("folder", ""),
            "command": command(facts, again=True),
            "was": command(facts, again=False),
            "seed": facts.recipe.get("seed", 0),
            "lines": lines,
            "settings": [(name, json.dumps(value, ensure_ascii=False)) for name, value in settings],
        },
    )


def command(facts: Facts, *, again: bool) -> str:
    """Return the command by which the run was started.

    With `again`, it gets a free run dir: in the same one, it would only report that the run is finished.
    """
    words = tuple(str(word) for word in facts.environment.get("command", []))
    starter = tuple(str(word) for word in facts.environment.get("starter", PYTHON))
    started = Command(words, starter)
    return str(started.into(f"{facts.path}-again") if again else started)


def _precision(facts: Facts, machine: dict[str, Any]) -> str:
    precision = {"no": "float32"}.get(str(machine["mixed_precision"]), str(machine["mixed_precision"]))
    measured = facts.precision.get("seconds_of_a_micro_step")
    if measured:
        times = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in measured.items())
        return f"{precision}, the fastest here (a micro-step takes: {times})"
    return precision
