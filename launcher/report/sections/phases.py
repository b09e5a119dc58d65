"""The phases: what each trained, what stayed frozen and how that was proved, and which features were stored."""

from __future__ import annotations

import dataclasses
from typing import Any

from launcher.report.facts import Facts
from launcher.report.formats import percent
from launcher.report.page import Section
from launcher.text import plural

STORES = {"memory": "stored in memory", "disk": "stored on disk", "none": "not stored"}


@dataclasses.dataclass(frozen=True)
class PhaseCard:
    """The description of a phase."""

    number: int
    name: str
    epochs: str
    share: float
    """The share of the parameters that train, in per cent."""
    trains: list[tuple[str, str, str]]
    frozen: str
    notes: list[str]
    proof: str
    holds: bool


def section(facts: Facts) -> Section | None:
    """Build the section, or return None for a run without plan.json."""
    phases: list[dict[str, Any]] = facts.plan.get("phases", [])
    if not phases:
        return None
    return Section("phases", "What was trained", {"cards": [_card(facts, i, p) for i, p in enumerate(phases)]})


def _card(facts: Facts, number: int, phase: dict[str, Any]) -> PhaseCard:
    done = sum(1 for epoch in facts.epochs if epoch.number == number)
    planned = int(phase["epochs"])
    epochs = plural(planned, "epoch") if done == planned else f"{done} of {plural(planned, 'epoch')} (ended early)"
    epochs += f" of {plural(int(phase['steps_per_epoch']), 'step')}"
    frozen = phase["total_parameters"] - phase["trainable_parameters"]
    notes = []
    if phase["norm_layers"]:
        kept = "kept" if phase["norm_statistics"] == "keep" else "updated"
        notes.append(f"{plural(phase['norm_layers'], 'BatchNorm layer')} trained, running statistics {kept}")
    if phase.get("pictures"):
        notes.append(f"pictures: {phase['pictures']}")
    cached = facts.cache.get(str(number))
    if cached:
        notes.append(f"outputs of what is frozen: {STORES.get(cached['store'], cached['store'])} ({cached['why']})")
    proof, holds = _proof(facts, number)
    return PhaseCard(
        number + 1,
        str(phase["name"]),
        epochs,
        round(100 * phase["trainable_parameters"] / max(1, phase["total_parameters"]), 2),
        [
            (group["what"], f"{group['parameters']:,}", f"{group['lr']:.3g} (scale {group['lr_scale']:g})")
            for group in phase["trains"]
        ],
        f"{frozen:,} ({_nearly(frozen / max(1, phase['total_parameters']))} %)" if frozen else "nothing",
        notes,
        proof,
        holds,
    )


def _nearly(share: float) -> str:
    """Format a share in per cent, with as many digits as keep one just below 100 % from reading as 100."""
    return next((text for digits in (1, 2) if not (text := percent(share, digits)).startswith("100")), ">99.99")


def _proof(facts: Facts, number: int) -> tuple[str, bool]:
    rows = [row for row in facts.proofs if row.get("number") == number]
    if not rows:
        return "", True
    tensors, digests = rows[-1]["tensors"], {row["digest"] for row in rows}
    checked = plural(sum(row["when"] == "checkpoint" for row in rows), "checkpoint")
    if not tensors:
        return "Nothing was frozen.", True
    if len(digests) == 1:
        return (
            f"{plural(tensors, 'tensor')} that must stand still, hashed at the beginning and at {checked}: not one bit "
            f"moved (BLAKE2 {rows[0]['digest'][:12]}…).",
            True,
        )
    return f"{plural(tensors, 'tensor')} that must stand still: the hashes of {checked} are not all the same.", False
