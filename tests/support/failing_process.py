"""Recipes in which a process dies, or sleeps for ever, or an image never comes, in the middle of training; or in which
a process has no data from the beginning."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from typing import Any

import tiny
from launcher import Split, Splits
from launcher.errors import UserError
from launcher.recipe.protocols import TargetKind
from launcher.training import watchdog


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faulty(tiny.TinyBackbone):
    fault: str

    def build(self) -> Any:
        network = super().build()

        def strike(module: Any, *_: Any) -> None:
            # Not in the trial batch before training, which is in evaluation mode as a whole.
            if os.environ.get("RANK") == "1" and module.training:
                if self.fault == "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(3600)

        network.block2[0].register_forward_hook(strike)
        return network


@dataclasses.dataclass(frozen=True)
class Blocked(tiny.Stripes):
    """A worker of the training images waits for one of them for ever; the check before training does not."""

    def read(self, index: int) -> Any:
        if index == 40 and multiprocessing.parent_process() is not None:
            time.sleep(3600)
        return super().read(index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockedData(tiny.StripeData):
    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        splits = super().build(target_kind, seed)
        return dataclasses.replace(splits, train=Split(Blocked(self.train, 0), splits.train.targets))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbsentData(tiny.StripeData):
    """On one of the machines, as it were, the data are not there."""

    rank: str

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        if os.environ.get("RANK") == self.rank:
            raise UserError(f"data: nothing is there on the machine of process {self.rank}")
        return super().build(target_kind, seed)


watchdog.PATIENCE_SECONDS = 3.0
plan = tiny.recipe.freeze_plan[1:]
dies = dataclasses.replace(tiny.recipe, backbone=Faulty(fault="dies"), freeze_plan=plan)
sleeps = dataclasses.replace(dies, backbone=Faulty(fault="sleeps"), hang_limit_seconds=10.0)
blocks = dataclasses.replace(tiny.recipe, data=BlockedData(), freeze_plan=plan, cache="off")
hangs = dataclasses.replace(blocks, hang_limit_seconds=5.0)
absent_on_0 = dataclasses.replace(tiny.recipe, data=AbsentData(rank="0"))
absent_on_1 = dataclasses.replace(tiny.recipe, data=AbsentData(rank="1"))
