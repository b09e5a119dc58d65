"""A whole run on one process: what it writes, that it learns, that it continues, that frozen is still."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from launcher import optim, phases, tasks, transforms
from launcher.errors import UserError
from launcher.training import loop, trackers
from launcher.training.best import Best
from launcher.training.command import Command
from launcher.training.final import longer
from launcher.training.progress import BEST, BEST_OF_PHASE
from runs import rows, train

FINAL = {"model.safetensors", "model.json", "classes.json", "preprocess.json", "metrics.json"}


def final(run_dir: Path, name: str) -> Any:
    return json.loads((run_dir / "final" / name).read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run") / "tiny"
    train(tiny.recipe, run_dir)
    return run_dir


@pytest.mark.slow
def test_a_run_writes_what_it_promises(finished: Path) -> None:
    assert {p.name for p in finished.iterdir()} == {
        "recipe.json",
        "recipe.py",
        "environment.json",
        "data.npz",
        "plan.json",
        "proofs.jsonl",
        "metrics.jsonl",
        "timing.jsonl",
        "cache.json",
        "log.txt",
        "checkpoints",
        "final",
    }
    assert {p.name for p in (finished / "final").iterdir()} == FINAL
    assert final(finished, "classes.json") == ["across", "down", "diagonal"]
    assert final(finished, "preprocess.json")["image_size"] == 16
    assert "\x1b" not in (finished / "log.txt").read_text()
    assert "done: accuracy" in (finished / "log.txt").read_text()


@pytest.mark.slow
def test_a_run_learns_and_reports_the_metrics_of_what_it_kept(finished: Path) -> None:
    epochs = rows(finished, "epoch")
    assert [row["phase"] for row in epochs] == ["linear_probe"] * 2 + ["full_finetune"] * 2
    best = max(row["val"]["accuracy"] for row in epochs)
    assert final(finished, "metrics.json")["accuracy"] == best > 0.5
    assert len(rows(finished, "step")) == 4 * 3
    assert [row["samples"] for row in rows(finished, "step")][:3] == [32, 32, 26]
    assert epochs[0]["train_loss"] == pytest.approx(
        sum(row["loss"] * row["samples"] for row in rows(finished, "step")[:3]) / 90
    )


@pytest.mark.slow
def test_a_frozen_phase_changes_the_head_alone_buffers_included(tmp_path: Path) -> None:
    plan = phases.linear_probe(epochs=2)
    train(dataclasses.replace(tiny.recipe, freeze_plan=plan, final_weights="last"), tmp_path)
    base = load_file(tmp_path / "checkpoints/base/model.safetensors")
    state = load_file(tmp_path / "final/model.safetensors")
    assert {name for name in state if not torch.equal(state[name], base[name])} == {"head.weight", "head.bias"}
    assert set(load_file(tmp_path / "checkpoints/step-000006/model.safetensors")) == {"head.weight", "head.bias"}


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["keep", "update"])
def test_what_batchnorm_does_in_a_phase_that_trains_it(tmp_path: Path, statistics: phases.NormStatistics) -> None:
    plan = phases.full_finetune(epochs=1, norm_statistics=statistics)
    train(dataclasses.replace(tiny.recipe, freeze_plan=plan), tmp_path)
    base = load_file(tmp_path / "checkpoints/base/model.safetensors")
    state = load_file(tmp_path / "final/model.safetensors")
    moved = {name.rsplit(".", 1)[1] for name in state if not torch.equal(state[name], base[name])}
    buffers = {"running_mean", "running_var", "num_batches_tracked"}
    assert moved == {"weight", "bias"} | (buffers if statistics == "update" else set())


@pytest.mark.slow
def test_the_same_command_on_a_finished_run_says_so(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    train(tiny.recipe, finished)
    assert "finished already" in capsys.readouterr().out
    assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_run_dir_of_another_recipe_is_refused_with_the_difference(finished: Path) -> None:
    other = dataclasses.replace(tiny.recipe, optim=optim.SGD(lr=0.2))
    with pytest.raises(UserError, match=r"holds a run of another recipe \(optim.lr: 0.1 there, 0.2 now\)"):
        train(other, finished)


class CutError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [2, 4, 6, 8, 11])
def test_a_run_that_was_cut_ends_with_the_weights_of_the_unbroken_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    recipe = tiny.resumable
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(recipe, whole)
    original = loop.train_step

    def interrupting(run: Any, state: Any, batches: Any, step: int) -> None:
        if run.progress.step == stop_at:
            raise CutError
        original(run, state, batches, step)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", interrupting)
        with pytest.raises(CutError):
            train(recipe, cut)
    train(recipe, cut, resume="must")
    ours, theirs = (load_file(path / "final/model.safetensors") for path in (cut, whole))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert (cut / "final/metrics.json").read_bytes() == (whole / "final/metrics.json").read_bytes()


@pytest.mark.slow
def test_patience_ends_a_phase_and_brings_back_its_best(tmp_path: Path) -> None:
    plan = phases.linear_probe(epochs=30, patience=2) + phases.full_finetune(epochs=1)
    train(dataclasses.replace(tiny.recipe, freeze_plan=plan), tmp_path)
    probe = [row for row in rows(tmp_path, "epoch") if row["phase"] == "linear_probe"]
    scores = [row["val"]["accuracy"] for row in probe]
    assert len(probe) < 30
    assert scores.index(max(scores)) == len(scores) - 3
    assert "ends early" in (tmp_path / "log.txt").read_text()
    assert "restored" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("task", [tasks.MultiLabel(), tasks.Regression()])
def test_other_tasks_learn(tmp_path: Path, task: tasks.MultiLabel | tasks.Regression) -> None:
    plan = phases.full_finetune(epochs=12, backbone_lr_scale=1.0, norm_statistics="update")
    recipe = dataclasses.replace(
        tiny.recipe,
        task=task,
        freeze_plan=plan,
        data=tiny.StripeData(train=300, val=60),
        augment=transforms.Augment(preset="none"),
        optim=optim.AdamW(lr=0.02),
    )
    train(recipe, tmp_path)
    metrics = final(tmp_path, "metrics.json")
    if isinstance(task, tasks.MultiLabel):
        # Ranking by chance has a mean average precision of the positive rates, about 0.5 here.
        assert metrics["map"] > 0.8
        assert final(tmp_path, "classes.json") == ["across", "not_down", "wide"]
    else:
        # The mean of the training targets has R2 = 0.
        assert metrics["r2"] > 0.2
        assert final(tmp_path, "model.json")["task"]["mean"][0] == pytest.approx(5.5, abs=0.5)


@pytest.mark.slow
def test_mixing_and_clipping_train(tmp_path: Path) -> None:
    augment = transforms.Augment(preset="trivial", mixup_alpha=0.2, cutmix_alpha=1.0, random_erasing=0.2)
    train(dataclasses.replace(tiny.recipe, augment=augment, clip_norm=0.5, mixed_precision="bf16"), tmp_path)
    assert len(rows(tmp_path, "epoch")) == 4


@pytest.mark.parametrize(
    ("phase", "epoch", "step", "advised"),
    [
        pytest.param(1, 3, 15, "freeze_plan.1.epochs=6", id="the last of all"),
        pytest.param(1, 2, 12, None, id="a later one was no better"),
        pytest.param(0, 2, 6, "freeze_plan.0.epochs=4", id="the last of an earlier phase"),
        pytest.param(0, 1, 3, None, id="not the last of an earlier phase"),
        pytest.param(1, 3, 12, None, id="not what final/ holds"),
    ],
)
def test_longer_is_advised_where_the_last_epoch_of_a_phase_is_the_best(
    phase: int, epoch: int, step: int, advised: str | None
) -> None:
    plan = phases.linear_probe(epochs=2) + phases.full_finetune(epochs=3)
    best = Best("accuracy", 0.9, 3 * (2 * phase + epoch), plan[phase].name, epoch, 0.1)
    run: Any = SimpleNamespace(
        recipe=dataclasses.replace(tiny.recipe, freeze_plan=plan),
        progress=SimpleNamespace(run_best=best),
        command=Command(("tiny.py",)),
        rundir=SimpleNamespace(path=Path("runs/tiny")),
    )
    expected = (
        f"the last epoch of {plan[phase].name} is the best; to train longer: "
        f"python -m launcher tiny.py {advised} --run-dir runs/tiny-longer"
    )
    assert longer(run, step) == (expected if advised else "")
    run.progress.run_best = None
    assert longer(run, step) == ""


@pytest.mark.slow
def test_an_epoch_is_reported_to_be_the_best_of_the_run_or_of_its_phase_alone(tmp_path: Path) -> None:
    """The rate of the second phase is so high that the head loses what it has learned."""
    (probe,) = phases.linear_probe(epochs=3)
    harmful = dataclasses.replace(probe, rules=(("head", 300.0), ("backbone", 0.0)))
    plan = (*phases.full_finetune(epochs=4, backbone_lr_scale=1.0), harmful)
    train(dataclasses.replace(tiny.recipe, freeze_plan=plan, optim=optim.SGD(lr=0.3)), tmp_path)
    ranks: list[tuple[str, tuple[float, float]]] = []
    expected = []
    for row in rows(tmp_path, "epoch"):
        rank = (row["val"]["accuracy"], -row["val"]["loss"])
        of_run = all(rank >= other for _, other in ranks)
        of_phase = all(rank >= other for phase, other in ranks if phase == row["phase"])
        expected.append(BEST if of_run else BEST_OF_PHASE if of_phase else "")
        ranks.append((row["phase"], rank))
    table = [line for line in (tmp_path / "log.txt").read_text().splitlines() if re.search(r" \d/[43]  +\d", line)]
    assert [re.search(r"(  \* best|  best of phase)?$", line)[0] for line in table] == expected
    assert expected[4] == BEST_OF_PHASE, "the test needs a second phase that begins worse than the first ended"


def test_resume_words(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(UserError, match=r"--resume must: .* holds no checkpoint"):
        train(tiny.recipe, tmp_path, resume="must")
    with pytest.raises(UserError, match=r"--resume never: .* already holds a run"):
        train(tiny.recipe, finished, resume="never")


@pytest.mark.slow
def test_deterministic_algorithms_are_asked_for(tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny.recipe, deterministic=True, freeze_plan=phases.full_finetune(epochs=1))
    try:
        train(recipe, tmp_path)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


SPEEDS = ("speed/images_per_second", "speed/epoch_seconds")


def test_a_continued_run_is_the_same_run_of_its_trackers(tmp_path: Path) -> None:
    run_dir = tmp_path / "pets"
    run_dir.mkdir()
    first = trackers.init_kwargs(run_dir)
    assert (first["wandb"]["name"], first["wandb"]["resume"], first["mlflow"]["run_name"]) == ("pets", "allow", "pets")
    assert first["mlflow"]["run_id"] is None
    (run_dir / trackers.FILE).write_text(json.dumps({"wandb": first["wandb"]["id"], "mlflow": "m1"}))
    again = trackers.init_kwargs(run_dir)
    assert (again["wandb"]["id"], again["mlflow"]["run_id"]) == (first["wandb"]["id"], "m1")
    (run_dir / trackers.FILE).write_text("[]")
    with pytest.raises(UserError, match="holds no ids of trackers"):
        trackers.init_kwargs(run_dir)


@pytest.mark.slow
def test_training_reports_the_notes_of_the_plan_once(tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny.recipe, batch_size=100, freeze_plan=phases.linear_probe(epochs=1))
    train(recipe, tmp_path / "run", evaluate_final=False)
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count("note: batch_size=100 is more than all 90 training images: one step per epoch") == 1


@pytest.mark.slow
def test_trackers_are_informed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    recipe = dataclasses.replace(tiny.recipe, trackers=("tensorboard",), freeze_plan=phases.linear_probe(epochs=2))
    train(recipe, tmp_path / "run")
    log = (tmp_path / "run/log.txt").read_text()
    assert f"tensorboard: tensorboard --logdir {tmp_path}\n" in log
    # Accelerate writes the recipe's values as hyper-parameters to a folder below that of the curves.
    events = min((tmp_path / "run").rglob("events.out.tfevents.*"), key=lambda path: len(path.parts))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(events.parent)).Reload()
    steps = rows(tmp_path / "run", "step")
    for tag, key in (("train/step_loss", "loss"), ("lr/scale_1", "lr")):
        assert [point.step for point in curves.Scalars(tag)] == [row["step"] for row in steps]
        assert [point.value for point in curves.Scalars(tag)] == pytest.approx([row[key] for row in steps])
    assert [point.value for point in curves.Scalars("phase")] == [1, 1]
    assert all(point.value > 0 for tag in SPEEDS for point in curves.Scalars(tag))
    reported = curves.Scalars("val/accuracy")
    assert [point.step for point in reported] == [3, 6]
    expected = [row["val"]["accuracy"] for row in rows(tmp_path / "run", "epoch")]
    assert [point.value for point in reported] == pytest.approx(expected)
