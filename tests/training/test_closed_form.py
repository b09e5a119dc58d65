"""Heads in closed form: the solution against scikit-learn's, and as the start of a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import Ridge as TheirRidge

import tiny
from launcher import Phase, Recipe, heads, optim, phases, tasks, transforms
from launcher.errors import UserError
from launcher.recipe.transforms import evaluation
from launcher.training.model import build_model
from launcher.training.ridge import Moments, RidgeOfMoments, RidgeOfSamples
from processes import start
from runs import rows, train

STILL = dataclasses.replace(
    tiny.recipe,
    head=heads.Linear(init="ridge", dropout=0.2),
    optim=optim.SGD(lr=1e-30),
    freeze_plan=phases.linear_probe(epochs=1),
    final_weights="last",
)
"""What it starts from is what it ends with."""


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("count", "width"), [(200, 30), (30, 50)])
def test_the_solution_is_that_of_scikit_learn(count: int, width: int, with_bias: bool) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(3, 1, (count, width)) * generator.uniform(0.1, 10, width)
    y = x @ generator.normal(0, 1, (width, 4)) + generator.normal(0, 1, (count, 4)) - 7
    one, other = Moments(width, 4), Moments(width, 4)
    for begin in range(0, count, 7):
        part = slice(begin, begin + 7)
        (one if begin % 2 else other).add(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    alphas = (1e-3, 1.0, 1e3, 1e6)
    ways = (
        RidgeOfMoments(one + other, with_bias=with_bias),
        RidgeOfSamples(torch.from_numpy(x), torch.from_numpy(y), with_bias=with_bias),
    )
    for ridge in ways:
        for alpha, found in zip(alphas, ridge.fits(torch.tensor(alphas, dtype=torch.float64)), strict=True):
            theirs = TheirRidge(alpha=alpha, fit_intercept=with_bias).fit(x, y)
            for weight, bias in (found, ridge.fit(alpha)):
                np.testing.assert_allclose(weight.numpy(), theirs.coef_, rtol=1e-4, atol=1e-8)
                np.testing.assert_allclose(bias.numpy(), theirs.intercept_, rtol=1e-4, atol=1e-8)
    assert ways[0].mean_eigenvalue == pytest.approx(ways[1].mean_eigenvalue)


def reported(run_dir: Path) -> dict[str, Any]:
    lines = map(json.loads, (run_dir / "timing.jsonl").read_text().splitlines())
    (row,) = [row for row in lines if row.get("head") == "ridge"]
    return row


def features_and_targets(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Computed here, of all training images in the evaluation view."""
    split = recipe.data.build(recipe.task.target_kind, recipe.seed).train
    transform = evaluation(recipe.backbone.preprocessing())
    images = torch.stack([transform(split.images.read(index)) for index in range(len(split))])
    network = build_model(recipe.backbone, recipe.head, 3, recipe.seed).backbone.eval()
    with torch.no_grad():
        return network(images).numpy(), split.targets


GOALS = {
    "classification": (tasks.Classification(label_smoothing=0.1), lambda targets: 2 * np.eye(3)[targets] - 1),
    "labels": (tasks.MultiLabel(), lambda targets: 2 * targets - 1),
    "values": (tasks.Regression(), lambda targets: (targets - targets.mean(axis=0)) / targets.std(axis=0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", GOALS)
@pytest.mark.parametrize(("cache", "width"), [("memory", 8), ("off", 8), ("memory", 64)])
def test_a_run_starts_from_the_solution(kind: str, cache: Any, width: int, tmp_path: Path) -> None:
    """With less features than images, and with more (two for each of the width)."""
    task, goals = GOALS[kind]
    recipe = dataclasses.replace(STILL, task=task, cache=cache, ema_decay=0.5, backbone=tiny.TinyBackbone(width=width))  # type: ignore[arg-type]
    train(recipe, tmp_path / "run")
    row = reported(tmp_path / "run")
    features, targets = features_and_targets(recipe)
    theirs = TheirRidge(alpha=row["l2"]).fit(features.astype(np.float64), goals(targets))  # type: ignore[no-untyped-call]
    ours = load_file(tmp_path / "run/final/model.safetensors")
    weight, bias = (ours[next(name for name in ours if name.endswith(f"head.{part}"))] for part in ("weight", "bias"))
    np.testing.assert_allclose(weight.numpy(), theirs.coef_ * row["scale"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(bias.numpy(), theirs.intercept_ * row["scale"], rtol=1e-4, atol=1e-4)
    assert (row["scale"] == 1) == (kind == "values")
    assert row["held_out"] == 18


@pytest.mark.long
def test_the_same_on_two_processes(tmp_path: Path) -> None:
    words = ("head.init=ridge", "optim.lr=1e-30", "final_weights=last", "freeze_plan.0.epochs=1", "--workers=0")
    for cache, width in (("memory", 8), ("off", 64)):
        one = dataclasses.replace(
            STILL,
            head=heads.Linear(init="ridge"),
            freeze_plan=tiny.recipe.freeze_plan,
            backbone=tiny.TinyBackbone(width=width),
            batch_size=30,
            cache=cache,  # type: ignore[arg-type]
        )
        train(one, tmp_path / f"one-{cache}")
        more = ("batch_size=30", f"cache={cache}", f"backbone.width={width}", "--run-dir", str(tmp_path / cache))
        done = start("torchrun", *words, *more)
        assert done.returncode == 0, done.stderr
        assert "head in closed form from 72 images" in done.stdout
        ours, theirs = (load_file(tmp_path / name / "final/model.safetensors") for name in (cache, f"one-{cache}"))
        assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-6
        assert reported(tmp_path / cache)["l2"] == pytest.approx(reported(tmp_path / f"one-{cache}")["l2"], rel=1e-9)


@pytest.mark.slow
def test_it_is_better_than_a_random_start(tmp_path: Path) -> None:
    plan = phases.linear_probe(epochs=1)
    for name, head in (("ridge", heads.Linear(init="ridge")), ("normal", heads.Linear())):
        train(dataclasses.replace(tiny.recipe, head=head, freeze_plan=plan), tmp_path / name)
    ridge, normal = (rows(tmp_path / name, "epoch")[0]["train_loss"] for name in ("ridge", "normal"))
    assert ridge < 0.8 * normal


def test_the_first_phase_must_train_the_head(tmp_path: Path) -> None:
    plan = (Phase(name="body", rules=(("head", 0.0), ("backbone", 1.0)), epochs=1), *tiny.recipe.freeze_plan)
    with pytest.raises(UserError, match=r"^head.init='ridge': freeze_plan.0 \(body\) does not train the head"):
        train(dataclasses.replace(STILL, freeze_plan=plan), tmp_path / "run")


@pytest.mark.slow
def test_augmented_views(tmp_path: Path) -> None:
    """The first of several; and phases with fresh pictures, whose head is fitted to the evaluation view."""
    fresh = dataclasses.replace(STILL, freeze_plan=phases.full_finetune(epochs=1), augment=transforms.Augment())
    train(dataclasses.replace(STILL, cache="memory", cache_views=2), tmp_path / "views")
    train(fresh, tmp_path / "fresh")
    train(dataclasses.replace(STILL, cache="off"), tmp_path / "off")
    assert reported(tmp_path / "fresh")["l2"] == reported(tmp_path / "off")["l2"]
    assert reported(tmp_path / "views")["l2"] != reported(tmp_path / "off")["l2"]
