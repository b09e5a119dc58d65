"""What is best: by the metric, then by the loss, then the later; never what is not finite."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from launcher import optim, phases
from launcher.errors import UserError
from launcher.recipe.phases import Phase
from launcher.training.best import Best, improves, is_better
from report_runs import train


def result(value: float, loss: float | None = None, epoch: int = 1, metric: str = "accuracy") -> Best:
    return Best(metric, value, 10 * epoch, "probe", epoch, loss)


@pytest.mark.parametrize(
    ("new", "best", "mode", "better", "improved"),
    [
        (result(0.8), None, "max", True, True),
        (result(0.8), result(0.7), "max", True, True),
        (result(0.8), result(0.7), "min", False, False),
        (result(1.0, 0.2), result(1.0, 0.3), "max", True, False),
        (result(1.0, 0.3), result(1.0, 0.2), "max", False, False),
        (result(1.0, 0.2), result(1.0, 0.2), "max", True, False),
        (result(1.0), result(1.0), "max", True, False),
        (result(1.0, math.nan), result(1.0, 0.2), "max", False, False),
        (result(math.nan, 0.1), None, "max", False, False),
        (result(math.inf, 0.1), result(0.5), "max", False, False),
        (result(-math.inf, 0.1), result(0.5), "min", False, False),
        (result(0.1, metric="loss"), result(0.9), "min", True, True),
    ],
)
def test_what_takes_the_place_of_the_best(
    new: Best, best: Best | None, mode: str, better: bool, improved: bool
) -> None:
    assert is_better(new, best, mode) is better  # type: ignore[arg-type]
    assert improves(new, best, mode) is improved  # type: ignore[arg-type]


def rows(run_dir: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["event"] == "epoch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnOneImage(tiny.StripeData):
    """Its one validation image is soon told right: the accuracy is 1.0 from then on."""

    val: int = 1


@pytest.mark.slow
def test_epochs_of_equal_accuracy_are_told_apart_by_their_loss(tmp_path: Path) -> None:
    plan = phases.linear_probe(epochs=3) + phases.full_finetune(epochs=4)
    train(dataclasses.replace(tiny.recipe, data=OnOneImage(), freeze_plan=plan), tmp_path)
    epochs = rows(tmp_path)
    perfect = [row for row in epochs if row["val"]["accuracy"] == 1.0]
    assert len(perfect) > 2, "the test needs ties"
    expected = min(perfect, key=lambda row: (row["val"]["loss"], -row["step"]))
    assert json.loads((tmp_path / "final/model.json").read_text())["step"] == expected["step"]
    assert json.loads((tmp_path / "final/metrics.json").read_text())["loss"] == expected["val"]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("final_weights", ["best", "last"])
def test_weights_that_an_update_breaks_stop_the_run_before_they_are_saved(tmp_path: Path, final_weights: str) -> None:
    """The gradient of the epoch's only step is finite; the learning rate makes of it what float32 cannot hold."""
    recipe = dataclasses.replace(
        tiny.recipe,
        optim=dataclasses.replace(tiny.recipe.optim, lr=1e38),  # type: ignore[type-var]
        final_weights=final_weights,  # type: ignore[arg-type]
        batch_size=90,
    )
    with pytest.raises(UserError, match=r"not finite.*nothing of it was saved; use a lower optim\.lr"):
        train(recipe, tmp_path)
    for folder in (tmp_path / "checkpoints").glob("step-*"):
        assert all(tensor.isfinite().all() for tensor in load_file(folder / "model.safetensors").values())
    assert not (tmp_path / "final").exists()


@pytest.mark.slow
@pytest.mark.parametrize("final_weights", ["best", "last"])
def test_broken_epochs_are_never_the_best_where_steps_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], final_weights: str
) -> None:
    """The second update breaks the weights; all later steps are skipped."""
    recipe = dataclasses.replace(
        tiny.recipe,
        optim=dataclasses.replace(tiny.recipe.optim, lr=1e38),  # type: ignore[type-var]
        on_nonfinite="skip",
        max_skipped_steps=100,
        batch_size=90,
        final_weights=final_weights,  # type: ignore[arg-type]
    )
    if final_weights == "best":
        train(recipe, tmp_path)
        assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "final/model.safetensors").values())
        assert json.loads((tmp_path / "final/model.json").read_text())["step"] == 1
    else:
        with pytest.raises(UserError, match="the weights after step 4, which final/ would hold, are not finite"):
            train(recipe, tmp_path)
        assert not (tmp_path / "final").exists()
    assert "epoch 2 is not taken for the best: its outputs for 31 of 31 validation images are not finite" in "".join(
        capsys.readouterr().out
    )
    assert [row["best"] for row in rows(tmp_path)] == [True, False, False, False]
    assert [row["val"]["loss"] is None for row in rows(tmp_path)] == [False, True, True, True], "NaN is not JSON"
    assert [row["train_loss"] is None for row in rows(tmp_path)] == [False, False, True, True], "0.0 would be a lie"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "where"),
    [
        (phases.linear_probe(epochs=1) + phases.full_finetune(epochs=3), "continuing"),  # the head's end is kept, too
        (phases.full_finetune(epochs=3), "no checkpoint can be continued from: the run begins again"),
    ],
)
def test_a_damaged_best_checkpoint_is_found_at_the_start_and_the_end_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: tuple[Phase, ...], where: str
) -> None:
    """Only what continues to the unbroken run's end is continued from."""
    # At this rate the last epoch is worse than one before, so that two checkpoints are needed.
    recipe = dataclasses.replace(tiny.recipe, freeze_plan=plan, optim=optim.SGD(lr=3.0), schedule=optim.Constant())
    train(recipe, tmp_path / "whole")
    best = json.loads((tmp_path / "whole/final/model.json").read_text())["step"]
    train(recipe, tmp_path / "cut")
    (tmp_path / "cut/final").rename(tmp_path / "gone")
    newest = max((tmp_path / "cut/checkpoints").glob("step-*"))
    progress = json.loads((newest / "progress.json").read_text())
    assert progress["run_best"]["step"] == best != progress["step"]
    (tmp_path / f"cut/checkpoints/step-{best:06d}/MANIFEST.json").unlink()
    capsys.readouterr()
    train(recipe, tmp_path / "cut")
    lines = capsys.readouterr().out
    assert f"needs step-{best:06d}, the best of the run: incomplete (no MANIFEST.json)" in lines
    assert where in lines
    ours, theirs = (load_file(tmp_path / run / "final/model.safetensors") for run in ("cut", "whole"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
