"""A recipe with a field that takes any text."""

from __future__ import annotations

import dataclasses

import tiny


@dataclasses.dataclass(frozen=True, kw_only=True)
class Titled(tiny.StripeData):
    title: str = ""


recipe = dataclasses.replace(tiny.parity, data=Titled(train=40, val=10), freeze_plan=tiny.parity.freeze_plan[1:])
