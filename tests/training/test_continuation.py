"""What may differ when a run continues: what changes no weights. Anything else is refused, and named."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

import tiny
from launcher import Recipe, data, phases
from launcher.errors import UserError
from runs import train


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for level, label in ((60, "dark"), (190, "bright")):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(draw.normal(level, 60, (24, 24, 3)), 0, 255).astype(np.uint8)
                PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


def of_folder(root: Path, **changes: Any) -> Recipe:
    plan = phases.linear_probe(epochs=1) + phases.full_finetune(epochs=2)
    recipe = dataclasses.replace(tiny.recipe, data=data.ImageFolder(root=str(root)), freeze_plan=plan, batch_size=8)
    return dataclasses.replace(recipe, **changes)


def cut_short(run_dir: Path) -> None:
    """Leave a run as it was after its first phase."""
    shutil.rmtree(run_dir / "final")
    for folder in (run_dir / "checkpoints").glob("step-*"):
        if folder.name > "step-000002":
            shutil.rmtree(folder)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "final/model.safetensors")


@pytest.mark.slow
def test_what_changes_no_weights_may_change_with_a_line_each(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder has moved, too."""
    recipe = of_folder(photos, cache="memory")
    train(recipe, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    cut_short(tmp_path / "cut")
    photos.rename(tmp_path / "node-local")
    changed = of_folder(
        tmp_path / "node-local",
        cache="disk",
        hang_limit_seconds=600.0,
        checkpoint_every_steps=1,
        checkpoint_every_minutes=5.0,
        on_nonfinite="skip",
        max_skipped_steps=3,
    )
    capsys.readouterr()
    train(changed, tmp_path / "cut")
    lines = capsys.readouterr().out
    for line in (
        "hang_limit_seconds: 300.0 there, 600.0 now: it changes no weights",
        "checkpoint_every_steps: None there, 1 now: it changes no weights",
        "checkpoint_every_minutes: None there, 5.0 now: it changes no weights",
        "on_nonfinite: 'stop' there, 'skip' now: it changes no weights",
        "max_skipped_steps: 10 there, 3 now: it changes no weights",
        "cache: 'memory' there, 'disk' now: it changes no weights",
        f"data.root: '{photos}' there, '{tmp_path / 'node-local'}' now: the data are the same",
    ):
        assert line in lines
    ours, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads((tmp_path / "cut/recipe.json").read_text())["hang_limit_seconds"] == 600
    train(changed, tmp_path / "cut")
    assert "is finished already" in capsys.readouterr().out
    train(of_folder(tmp_path / "node-local", hang_limit_seconds=1.0), tmp_path / "cut")
    assert "is finished already" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"optim": dataclasses.replace(tiny.recipe.optim, lr=0.2)}, "optim.lr: 0.1 there, 0.2 now"),  # type: ignore[type-var]
        ({"cache": "off"}, "cache: 'memory' there, 'off' now"),  # fresh images in each epoch: other weights
    ],
)
def test_what_changes_weights_is_refused(photos: Path, tmp_path: Path, change: dict[str, Any], reported: str) -> None:
    train(of_folder(photos, cache="memory"), tmp_path / "run")
    cut_short(tmp_path / "run")
    with pytest.raises(UserError, match="holds a run of another recipe") as refused:
        train(of_folder(photos, **{"cache": "memory", **change}), tmp_path / "run")
    assert reported in str(refused.value)


@pytest.mark.slow
def test_one_other_image_is_reported_by_name_whether_the_run_is_finished_or_not(photos: Path, tmp_path: Path) -> None:
    train(of_folder(photos), tmp_path / "run")
    shutil.copytree(photos, tmp_path / "moved")
    (tmp_path / "moved/val/dark/2.png").write_bytes((photos / "val/dark/1.png").read_bytes())
    reported = r"validation: 1 of 8 images has other content: dark/2\.png"
    with pytest.raises(UserError, match=f"holds a run on other data .*{reported}"):
        train(of_folder(tmp_path / "moved"), tmp_path / "run")
    cut_short(tmp_path / "run")
    with pytest.raises(UserError, match=reported):
        train(of_folder(tmp_path / "moved"), tmp_path / "run")
    (photos / "val/dark/2.png").write_bytes((photos / "val/dark/1.png").read_bytes())
    with pytest.raises(UserError, match=reported):
        train(of_folder(photos), tmp_path / "run")


@pytest.mark.slow
def test_other_weights_for_final_are_asked_for_before_the_end(photos: Path, tmp_path: Path) -> None:
    train(of_folder(photos), tmp_path / "run")
    with pytest.raises(UserError, match="final_weights: 'best' there, 'last' now"):
        train(of_folder(photos, final_weights="last"), tmp_path / "run")
    cut_short(tmp_path / "run")
    train(of_folder(photos, final_weights="last"), tmp_path / "run")
    assert json.loads((tmp_path / "run/final/model.json").read_text())["step"] == 6


OWN = """
import dataclasses
from launcher import tasks
from launcher.recipe.part import part

@part
class Weighted(tasks.Classification):
    def build(self, splits):
        built = super().build(splits)
        plain = built.loss
        built.loss = lambda outputs, targets: plain(outputs, targets) * 1.0
        return built
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_weighted.py").write_text(OWN)
    yield tmp_path / "own_weighted.py"
    sys.modules.pop("own_weighted", None)


def with_own() -> Recipe:
    sys.modules.pop("own_weighted", None)
    importlib.invalidate_caches()
    return dataclasses.replace(tiny.recipe, task=importlib.import_module("own_weighted").Weighted())


@pytest.mark.slow
def test_own_code_that_changed_is_refused_unless_asked_for(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(with_own(), tmp_path / "run")
    cut_short(tmp_path / "run")
    own.write_text(OWN.replace("import dataclasses", "# the same\nimport dataclasses"))
    train(with_own(), tmp_path / "run")
    cut_short(tmp_path / "run")
    own.write_text(OWN.replace("1.0", "1.5"))
    with pytest.raises(UserError, match=r"began with \(own_weighted\.py \(Weighted\)\).*--accept-code"):
        train(with_own(), tmp_path / "run")
    train(with_own(), tmp_path / "run", accepts_changed_code=True)
    assert "code that has changed since the run began: own_weighted.py (Weighted)" in capsys.readouterr().out
    cut_short(tmp_path / "run")
    train(with_own(), tmp_path / "run")  # accepted once
