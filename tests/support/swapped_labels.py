"""The digits with some labels swapped on purpose."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from launcher import Split, Splits, heads, optim, phases
from launcher.recipe.protocols import TargetKind
from recipes import digits

COUNT = 600


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swapped:
    share: float = 0.05

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        train, val = (rows[:COUNT] for rows in digits.split_rows(0.2, 0))
        labels = digits.load_digits()[1]
        targets = labels[train].copy()
        wrong = self.wrong(seed)
        targets[wrong] = (targets[wrong] + 1 + np.arange(len(wrong)) % 9) % 10
        return Splits(
            Split(digits.DigitImages(train), targets),
            Split(digits.DigitImages(val), labels[val]),
            names=tuple(str(digit) for digit in range(10)),
        )

    def wrong(self, seed: int) -> npt.NDArray[np.int64]:
        """Which training images have another label than theirs."""
        drawn = np.random.Generator(np.random.PCG64(seed)).permutation(COUNT)
        return np.sort(drawn[: round(self.share * COUNT)])


recipe = dataclasses.replace(
    digits.recipe,
    data=Swapped(),
    head=heads.Linear(init="ridge"),
    freeze_plan=phases.linear_probe(epochs=1),
    optim=optim.AdamW(lr=1e-4),
)
