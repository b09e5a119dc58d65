"""Boundaries at which a backbone may be cut: its stages, from the input to the output."""

from __future__ import annotations

import dataclasses

from torch import nn

MOST = 8
"""Largest number of boundaries that are probed; of more, some in between are left out."""
LIGHT = 0.005
"""Share of the parameters below which a stage (a stem, a norm) is not worth a boundary."""
ENOUGH = 4


@dataclasses.dataclass(frozen=True)
class Stage:
    """Module of the backbone, and the modules that must train with it."""

    name: str
    """Name within the backbone: "layer4", "features.7"."""
    behind: tuple[str, ...]
    """Modules with parameters behind this one, which train if the boundary is chosen."""
    parameters: int
    """Number of parameters in the modules behind."""


def stages_of(backbone: nn.Module) -> list[Stage]:
    """Return the boundaries from the input to the output; behind the last one nothing of the backbone is left."""
    parts = [(name, module) for name, module in backbone.named_children() if _count(module)]
    total = max(1, _count(backbone))
    while sum(_count(module) >= LIGHT * total for _, module in parts) < ENOUGH:
        largest = max(range(len(parts)), key=lambda index: _count(parts[index][1]), default=-1)
        inside = [] if largest < 0 else [(n, m) for n, m in parts[largest][1].named_children() if _count(m)]
        if not inside:
            break
        name = parts[largest][0]
        parts[largest : largest + 1] = [(f"{name}.{child}", module) for child, module in inside]
    heavy = [index for index, (_, module) in enumerate(parts) if _count(module) >= LIGHT * total]
    if len(heavy) > MOST:
        step = (len(heavy) - 1) / (MOST - 1)
        heavy = [heavy[round(number * step)] for number in range(MOST)]
    stages = []
    for index in heavy:
        behind = parts[index + 1 :]
        stages.append(
            Stage(parts[index][0], tuple(name for name, _ in behind), sum(_count(module) for _, module in behind))
        )
    return stages


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
