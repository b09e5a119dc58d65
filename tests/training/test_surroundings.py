"""What befalls a run from outside is one line with the cure, and the same command goes on."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_run import train

from launcher import Split, Splits, phases
from launcher.errors import UserError
from launcher.recipe.protocols import TargetKind


@dataclasses.dataclass(frozen=True)
class Failing(tiny.Stripes):
    """Images of which one cannot be had in a data worker, in one way or another."""

    fault: str = ""

    def read(self, index: int) -> Any:
        if self.fault.startswith("/"):
            shutil.rmtree(self.fault, ignore_errors=True)
        if index == 5 and torch.utils.data.get_worker_info() is not None:
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "damaged":
                raise UserError("/copies/pets: the prepared copy is damaged (train.*); prepare it again")
            if self.fault == "unreadable":
                raise PermissionError(13, "Permission denied", "/pets/5.png")
            if self.fault == "bug":
                return self.no_such_field  # type: ignore[attr-defined]
            raise MemoryError
        return super().read(index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailingData(tiny.StripeData):
    fault: str

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        splits = super().build(target_kind, seed)
        return dataclasses.replace(splits, train=Split(Failing(self.train, 0, self.fault), splits.train.targets))


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (
            "killed",
            r"a data worker \(process \d+\) was killed( \(Killed\))?, as happens where memory runs out; give the ",
        ),
        ("damaged", r"/copies/pets: the prepared copy is damaged \(train\.\*\); prepare it again"),
        ("unreadable", r"data: stripes/0/5: cannot be read \(Permission denied\)"),
        ("bug", r"data: stripes/0/5: AttributeError: .*no_such_field.* \(at .*test_surroundings\.py:\d+\)"),
        ("memory", r"data: stripes/0/5: memory ran out; use fewer --workers, or give the run more memory"),
    ],
)
def test_what_goes_wrong_in_a_data_worker_is_one_line(tmp_path: Path, fault: str, line: str) -> None:
    recipe = dataclasses.replace(
        tiny.recipe, data=FailingData(fault=fault), freeze_plan=phases.full_finetune(epochs=1), cache="off"
    )
    with pytest.raises(UserError, match=f"^{line}") as error:
        train(recipe, tmp_path / "run", num_workers=1)
    assert len(error.value.problems) == 1
    assert "Traceback" not in str(error.value)
    assert str(error.value).endswith("; then the same command begins again")


def test_a_run_dir_that_is_removed_in_mid_run_is_told(tmp_path: Path) -> None:
    data = FailingData(fault=str(tmp_path / "run"))
    recipe = dataclasses.replace(
        tiny.recipe, data=data, freeze_plan=phases.full_finetune(epochs=1), cache="off", checkpoint_every_steps=1
    )
    with pytest.raises(UserError, match=r"run: the run dir is gone; it was removed or renamed") as error:
        train(recipe, tmp_path / "run", num_workers=0)
    assert len(error.value.problems) == 1
