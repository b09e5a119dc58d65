"""Proposal of a freeze plan from the measurements: rules of thumb, each with the numbers that it goes by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from launcher.init.rules import FEW, MANY, SOME
from launcher.text import number
from launcher.tuning.advise.costs import StageCost
from launcher.tuning.advise.probes import Probe
from launcher.tuning.advise.stages import Stage


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Freeze plan, and the reasons for it."""

    plan: str
    """Python code for `freeze_plan=`."""
    why: tuple[str, ...]


def propose(
    stages: Sequence[Stage],
    probes: Sequence[Probe],
    costs: Sequence[StageCost],
    of_each: float,
    amount: str,
    mode: str,
    metric: str,
) -> Proposal:
    """Return the freeze plan that the rules of thumb lead to.

    `of_each` is the number of images from which an output is learned: those of a class or label, or in regression a
    tenth of all; `amount` describes it. Probes are in the order of the stages, the last of which is the backbone's own
    output.
    """
    sign = 1 if mode == "max" else -1
    last = probes[-1]
    best = max(range(len(probes)), key=lambda index: (sign * probes[index].value, index))
    beats = sign * (probes[best].value - last.value) > 0 and not (last.low <= probes[best].value <= last.high)
    why = [amount]
    head = 'Phase(name="head", rules=(("head", 1.0), ("backbone", 0.0)), epochs=10)'
    if of_each < FEW and not beats:
        why.append(f"fewer than {FEW}: the head alone, for anything more would learn them by heart")
        return Proposal(f"({head},)", tuple(why))
    scale = 0.03 if of_each < SOME else 0.1 if of_each < MANY else 0.3
    if beats:
        stage = stages[best]
        scale = min(1.0, 3 * scale)
        why.append(
            f"{metric} is {number(probes[best].value)} at {stage.name} and {number(last.value)} at the end, outside of "
            "its interval: what is behind it was made for other images, and takes larger steps"
        )
        trained = stage.behind
    elif of_each < SOME:
        # The first boundary, of the second half, whose features are no worse than those at the end: what lies before it
        # changes least.
        near = [index for index in range(len(stages)) if _overlap(probes[index], last)]
        index = min(near, default=len(stages) - 1)
        index = min(max(index, len(stages) // 2), len(stages) - 2) if len(stages) > 1 else 0
        trained = stages[index].behind
        cost = costs[index]
        seconds = f" ({cost.stored:.3g} s an epoch on stored features, {cost.epoch:.3g} s with fresh pictures)"
        why.append(
            f"fewer than {SOME}: the head first, then what is behind {stages[index].name} in small steps; what is "
            f"before stays, and is computed once{'' if math.isnan(cost.epoch) else seconds}"
        )
    else:
        why.append(f"{SOME} or more: the head first, then everything")
        trained = ()
    rules = [("head", 1.0), *((f"backbone.{name}", scale) for name in trained)]
    rules.append(("backbone", 0.0 if trained else scale))
    inner = ", ".join(f'("{name}", {rate:g})' for name, rate in rules)
    epochs = max(3, min(20, math.ceil(4000 / max(1, of_each))))
    tune = f'Phase(name="finetune", rules=({inner}), epochs={epochs})'
    return Proposal(f"(\n    {head},\n    {tune},\n)", tuple(why))


def _overlap(one: Probe, other: Probe) -> bool:
    return one.low <= other.high and other.low <= one.high
