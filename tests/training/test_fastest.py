"""The fastest settings by themselves: precision measured once and kept; a compiled network under its own names."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_run import train

from launcher.training import precision


def log(run_dir: Path) -> str:
    return (run_dir / "log.txt").read_text()


@pytest.mark.parametrize("faster", ["no", "bf16"])
def test_the_faster_precision_is_taken_recorded_and_kept(
    faster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(tiny.recipe, mixed_precision="auto", final_weights="last")
    with monkeypatch.context() as patched:
        patched.setattr(precision, "measure", lambda *_: {"no": 1.0, "bf16": 2.0} | {faster: 0.5})
        train(recipe, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "precision.json").read_text())["mixed_precision"] == faster
    assert f"cpu, mixed_precision={faster}, " in log(tmp_path / "run")
    from conftest import _forget_processes

    # It does what the precision by its name does.
    _forget_processes()
    train(dataclasses.replace(recipe, mixed_precision=faster), tmp_path / "named")
    ours, theirs = (load_file(tmp_path / run / "final" / "model.safetensors") for run in ("run", "named"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    # Continued where the other one would be faster: it stays.
    _forget_processes()
    shutil.rmtree(tmp_path / "run" / "final")
    monkeypatch.setattr(precision, "measure", lambda *_: pytest.fail("measured again"))
    train(recipe, tmp_path / "run")
    assert log(tmp_path / "run").count(f"mixed_precision={faster}, ") == 2


def test_both_precisions_are_measured(tmp_path: Path) -> None:
    train(dataclasses.replace(tiny.recipe, mixed_precision="auto"), tmp_path)
    recorded = json.loads((tmp_path / "precision.json").read_text())
    seconds = recorded["seconds_of_a_micro_step"]
    assert set(seconds) == {"no", "bf16"}
    assert recorded["mixed_precision"] == min(seconds, key=seconds.__getitem__)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_a_compiled_network_learns_the_same_under_its_own_names(tmp_path: Path) -> None:
    rules = (("head", 1.0), ("backbone.block2", 0.5), ("backbone", 0.0))
    partly = dataclasses.replace(tiny.recipe.freeze_plan[0], name="partly", rules=rules)
    recipe = dataclasses.replace(tiny.parity, freeze_plan=(partly, *tiny.recipe.freeze_plan[1:]))
    train(recipe, tmp_path / "eager")
    train(dataclasses.replace(recipe, compile=True), tmp_path / "compiled")
    ours, theirs = (load_file(tmp_path / run / "final" / "model.safetensors") for run in ("compiled", "eager"))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in theirs) < 1e-5
