"""`evaluate`: a finished run's model gives its metrics again, whoever computes them and from wherever."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import tiny
from commands import RunCli
from evaluation_runs import ENVIRON, evaluated, run
from launcher import Recipe, backbones, heads, optim, phases, tasks
from launcher.errors import UserError
from launcher.inference.finished_run import read_finished
from launcher.recipe.type_names import types_in
from runs import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run") / "tiny"
    # The best of an averaged network in the middle of the run: final/ holds neither the last weights nor raw ones.
    train(dataclasses.replace(tiny.resumable, final_weights="best"), run_dir)
    return run_dir


def metrics_of_final(run_dir: Path) -> dict[str, float]:
    stored: dict[str, float] = json.loads((run_dir / "final/metrics.json").read_text())
    return stored


@pytest.mark.slow
def test_the_metrics_of_the_run_again(finished: Path) -> None:
    found = evaluated(finished)
    assert found.metrics == metrics_of_final(finished)
    assert found.outputs.shape == (31, 3)
    assert found.unlike_training() == {}


resnet = backbones.Torchvision(name="resnet18", weights=None, image_size=32)


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": None, "final_weights": "last"},
        {"mixed_precision": "bf16"},
        {"task": tasks.Regression(), "optim": optim.SGD(lr=0.01)},
        {"task": tasks.MultiLabel()},
        {"backbone": resnet, "freeze_plan": phases.full_finetune(epochs=1, norm_statistics="update")},
        {"backbone": resnet, "freeze_plan": phases.linear_probe(epochs=1), "head": heads.MLP(hidden=8)},
        {
            "backbone": backbones.Timm(name="test_resnet", weights=None, image_size=32),
            "freeze_plan": phases.linear_probe(epochs=1),
        },
        {
            "backbone": backbones.Torchvision(name="squeezenet1_1", weights=None, image_size=32),
            "freeze_plan": phases.linear_probe(epochs=1),
        },
    ],
    ids=lambda changes: "-".join(changes),
)
def test_whatever_the_recipe_is_made_of(changes: dict[str, Any], tmp_path: Path) -> None:
    recipe: Recipe = dataclasses.replace(tiny.resumable, **changes)
    train(recipe, tmp_path / "run")
    assert evaluated(tmp_path / "run").metrics == pytest.approx(metrics_of_final(tmp_path / "run"), rel=1e-6)


@pytest.mark.slow
def test_the_weights_that_training_began_with_are_not_needed(tmp_path: Path) -> None:
    train(dataclasses.replace(tiny.recipe, backbone=resnet, freeze_plan=phases.linear_probe(epochs=1)), tmp_path / "a")
    first = tmp_path / "first.safetensors"
    shutil.copyfile(tmp_path / "a/final/model.safetensors", first)
    again = dataclasses.replace(resnet, weights=str(first))
    train(dataclasses.replace(tiny.recipe, backbone=again, freeze_plan=phases.linear_probe(epochs=1)), tmp_path / "b")
    first.unlink()
    assert evaluated(tmp_path / "b").metrics == metrics_of_final(tmp_path / "b")


@pytest.mark.slow
def test_training_images(finished: Path) -> None:
    found = evaluated(finished, split_name="train")
    assert found.outputs.shape == (90, 3)
    assert found.file.name == "evaluation-train.json"
    assert found.metrics != metrics_of_final(finished)


@pytest.mark.long
def test_one_process_and_two_print_and_write_the_same(finished: Path) -> None:
    reported, written = {}, {}
    for processes in (1, 2):
        reported[processes] = run(finished, processes).splitlines()
        written[processes] = json.loads((finished / "evaluation.json").read_text())
    first = f"{finished}: the weights of step {read_finished(finished, types_in(tiny.recipe)).step} on 31 images (val)"
    metrics = metrics_of_final(finished)
    assert reported[1] == reported[2]
    assert reported[1][0] == first
    assert reported[1][-1] == f"written to {finished}/evaluation.json and evaluation.parquet"
    assert ["accuracy", f"{metrics['accuracy']:.4f}"] in [line.split()[:2] for line in reported[1]]
    for processes, found in written.items():
        assert found["metrics"] == pytest.approx(metrics, abs=1e-6)
        assert found["metrics"]["accuracy"] == metrics["accuracy"]
        assert (found["split"], found["samples"], found["processes"]) == ("val", 31, processes)
        weights = {"file": "final/model.safetensors", "step": read_finished(finished, types_in(tiny.recipe)).step}
        assert found["weights"] == weights | {"chosen": "best", "averaged": True}


def test_what_is_no_finished_run(run_cli: RunCli, finished: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(finished, unfinished, ignore=shutil.ignore_patterns("final"))
    for place, why in (
        (unfinished, "this run has not ended; the command that began it continues it"),
        (tmp_path, "no run dir (it has no recipe.json)"),
        (tmp_path / "nothing", "no such run dir"),
    ):
        done = run_cli("evaluate", str(place), env=ENVIRON)
        assert (done.code, done.out, done.err) == (2, "", f"error: {place}: {why}\n")


@pytest.mark.slow
def test_weights_and_data_must_be_those_of_the_run(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    weights = load_file(copy / "final/model.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.ndim > 1)
    save_file({key: tensor for key, tensor in weights.items() if key != name}, copy / "final/model.safetensors")
    with pytest.raises(UserError, match=f"does not fit the network of recipe.json: {name} is missing$"):
        evaluated(copy)
    save_file(weights | {"more": weights[name].clone()}, copy / "final/model.safetensors")
    with pytest.raises(UserError, match=r"more is not of this network$"):
        evaluated(copy)
    save_file(weights | {name: weights[name][:1].clone()}, copy / "final/model.safetensors")
    with pytest.raises(UserError, match=rf"{name} is \(1, .*\), not \("):
        evaluated(copy)
    save_file(weights, copy / "final/model.safetensors")
    text = (copy / "recipe.json").read_text()
    (copy / "recipe.json").write_text(text.replace('"val": 31', '"val": 30'))
    reported = "the data are not those of the run (validation: 31 images then, 30 now (gone: 1/30))"
    with pytest.raises(UserError, match=re.escape(reported)):
        evaluated(copy)


@pytest.mark.slow
def test_metrics_that_are_not_those_of_the_run_are_reported(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    weights = load_file(copy / "final/model.safetensors")
    save_file({name: 0 * tensor for name, tensor in weights.items()}, copy / "final/model.safetensors")
    then = metrics_of_final(finished)
    assert evaluated(copy).unlike_training()["loss"] == then["loss"]
    assert "not the metrics of the run itself" in run(copy, 1)
