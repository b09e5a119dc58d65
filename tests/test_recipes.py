"""The recipes that are shipped: they load, they say what they cost, they resolve, and the small ones are trained."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets  # noqa: F401 - sets environment variables when it is imported first; here, not in a test
import torch

from commands import ROOT
from launcher.cli import main
from launcher.errors import Problems
from launcher.recipe.loading import load_recipe
from launcher.recipe.overrides import apply_overrides
from launcher.recipe.recipe import Recipe
from launcher.recipe.serialization import from_json, to_json
from launcher.recipe.type_names import types_in
from launcher.training.model import build_model
from launcher.training.preflight import ResolvedPhase, resolve_phases

FILES = sorted(file for file in (ROOT / "recipes").glob("*.py") if file.name != "__init__.py")
OFFLINE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
"""A proxy that is not there: no network, wherever the test runs."""


def recipe_of(name: str, *overrides: str) -> Recipe:
    recipe: Recipe = apply_overrides(load_recipe(str(ROOT / "recipes" / f"{name}.py")).recipe, overrides)
    return recipe


def test_there_is_a_recipe_for_each_kind_of_thing() -> None:
    kinds = {recipe_of(file.stem).task.target_kind for file in FILES}
    assert kinds == {"class", "labels", "values"}
    assert len(FILES) >= 6


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_is_a_value(file: Path) -> None:
    recipe = recipe_of(file.stem)
    written = json.dumps(to_json(recipe))
    assert from_json(json.loads(written), types_in(recipe)) == recipe
    assert recipe_of(file.stem, "seed=7") != recipe


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_opens_with_its_command_its_cost_and_its_result(file: Path) -> None:
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    lines = docstring.splitlines()
    assert any(line.startswith(f"    python -m launcher recipes/{file.name}") for line in lines)
    (result,) = (line for line in lines if line.startswith("Expected: "))
    if "not measured" not in result:
        assert any(character.isdigit() for character in result)
        assert re.search(r"\d (min|s)\b.* on ", docstring.replace("\n", " ")), "how long it took, and on what"


@pytest.mark.slow
def test_importing_recipes_imports_nothing_slow() -> None:
    names = ", ".join(f"recipes.{file.stem}" for file in FILES)
    slow = ("torch", "torchvision", "timm", "datasets", "sklearn", "accelerate")
    source = f"import sys, {names}; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(autouse=True)
def compiler_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimizers and networks without memory import torch's compiler, which sets this variable where it is not set."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def resolved(recipe: Recipe) -> tuple[ResolvedPhase, ...]:
    """The phases on the real architecture, without memory for its weights."""
    with torch.device("meta"):
        model = build_model(recipe.backbone, recipe.head, 37, recipe.seed)
    problems = Problems()
    phases = resolve_phases(recipe, model, 46, problems)
    assert problems.found == []
    return tuple(phases)


def test_resnet50_trains_the_head_and_then_all() -> None:
    probe, full = resolved(recipe_of("resnet50", "backbone.weights=none"))
    assert probe.trainable_parameters == 2048 * 37 + 37
    assert full.trainable_parameters == full.total_parameters == 23_508_032 + 2048 * 37 + 37
    assert [group.lr for group in full.groups] == pytest.approx([1e-3, 1e-4])
    assert full.norm_layers == 53


def test_resnet50_gradual_goes_from_the_output_to_the_input() -> None:
    probe, *rest = resolved(recipe_of("resnet50_gradual", "backbone.weights=none"))
    assert [len(phase.groups) for phase in (probe, *rest)] == [1, 2, 3, 4]
    assert [phase.phase.name for phase in rest] == ["unfreeze_layer4", "unfreeze_layer3", "unfreeze_layer2"]
    still = {name for name, scale in rest[-1].lr_scales.items() if scale == 0}
    assert {name.split(".")[1] for name in still} == {"conv1", "bn1", "layer1"}
    assert [group.lr_scale for group in rest[-1].groups] == [1.0, 0.1, 0.05, 0.025]


def test_vit_b_16_decays_over_its_layers() -> None:
    _, decay = resolved(recipe_of("vit_b_16", "backbone.weights=none"))
    assert [group.lr_scale for group in decay.groups] == pytest.approx([0.75**power for power in range(15)])
    groups = [{name.removeprefix("backbone.") for name in group.names} for group in decay.groups]
    assert groups[0] == {"head.weight", "head.bias"}
    assert groups[1] == {"encoder.ln.weight", "encoder.ln.bias"}
    assert all("encoder_layer_11." in name for name in groups[2])
    assert groups[-1] == {"class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"}
    assert decay.trainable_parameters == decay.total_parameters == 85_798_656 + 768 * 37 + 37


def trained(name: str, run_dir: Path, *overrides: str) -> dict[str, Any]:
    """metrics.json of a shortened run in this process."""
    words = [str(ROOT / "recipes" / f"{name}.py"), *overrides, "--run-dir", str(run_dir), "--workers", "0"]
    assert main(words) == 0
    metrics: dict[str, Any] = json.loads((run_dir / "final" / "metrics.json").read_text())
    return metrics


@pytest.mark.long
def test_digits_learns_shortened(tmp_path: Path) -> None:
    """One epoch of each phase on half of the digits, at 32 px. The most frequent digit would be right in about 10 %."""
    short = ("data.val_fraction=0.5", "backbone.image_size=32", "freeze_plan.0.epochs=1", "freeze_plan.1.epochs=1")
    assert trained("digits", tmp_path / "run", *short)["accuracy"] > 0.8


@pytest.mark.long
def test_multilabel_beats_a_constant_predictor_shortened(tmp_path: Path) -> None:
    """A constant predictor's mean average precision is the mean frequency of the labels: 0.34. Asked for: 0.2 more."""
    recipe = recipe_of("digits_multilabel", "data.train_images=400", "data.val_images=200")
    constant = float(recipe.data.build("labels", recipe.seed).val.targets.mean())
    assert 0.3 < constant < 0.4
    short = ("data.train_images=400", "data.val_images=200", "backbone.image_size=48", "freeze_plan.1.epochs=2")
    short += ("schedule.warmup_fraction=0.3",)  # type: ignore[assignment]  # the recipe's 5 % would be two steps here
    assert trained("digits_multilabel", tmp_path / "run", *short)["map"] > constant + 0.2


@pytest.mark.long
def test_regression_beats_a_constant_predictor_shortened(tmp_path: Path) -> None:
    """The best constant is wrong by 30 degrees in the mean (angles from -60 to 60). Asked for: at most half of that,
    after one epoch of each phase on half of the digits."""
    recipe = recipe_of("digits_rotation", "data.val_fraction=0.5")
    splits = recipe.data.build("values", recipe.seed)
    constant = float(np.abs(splits.val.targets - np.median(splits.train.targets)).mean())
    assert 25 < constant < 35
    short = ("data.val_fraction=0.5", "backbone.image_size=32", "freeze_plan.0.epochs=1", "freeze_plan.1.epochs=1")
    metrics = trained("digits_rotation", tmp_path / "run", *short)
    assert metrics["mae"] < constant / 2
    assert metrics["r2"] > 0.5


@pytest.mark.slow
def test_resnet50_without_network_says_what_it_wanted_and_the_ways_on(tmp_path: Path) -> None:
    """Through accelerate launch. Without its -q it shows the exit code of the training."""
    prefixes = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "ACCELERATE_", "HF_", "TORCH")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    environ |= OFFLINE | {"HF_HOME": str(tmp_path / "hf"), "TORCH_HOME": str(tmp_path / "torch")}
    start = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "-m", "launcher"]
    done = subprocess.run(
        [*start, "recipes/resnet50.py", "--run-dir", str(tmp_path / "run")],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2, done.stderr
    data = next(line for line in errors if line.startswith("error: data.path"))
    weights = next(line for line in errors if line.startswith("error: backbone.weights"))
    assert str(tmp_path / "hf") in data
    assert "data.path=" in data
    assert "recipes/digits.py" in data
    assert "resnet50-11ad3fa6.pth" in weights
    assert str(tmp_path / "torch") in weights
    assert "backbone.weights=none" in weights
    assert "non-zero exit status 2" in done.stderr
    assert "Epoch" not in done.stdout


@pytest.mark.long
def test_resnet50_trains_on_a_folder_of_ones_own(tmp_path: Path) -> None:
    """The recipe's own network and precision, on pictures of 64 pixels."""
    draw = np.random.Generator(np.random.PCG64(0))
    for number in range(12):
        folder = tmp_path / "images" / ("bright" if number % 2 else "dark")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 100, (70, 80, 3)) + 150 * (number % 2)
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    overrides = ("backbone.weights=none", f"data.path={tmp_path / 'images'}", "data.label_column=none")
    overrides += ("backbone.image_size=64", "batch_size=4", "freeze_plan.0.epochs=1", "freeze_plan.1.epochs=1")  # type: ignore[assignment]
    metrics = trained("resnet50", tmp_path / "run", *overrides)
    assert 0 <= metrics["accuracy"] <= 1
    assert json.loads((tmp_path / "run" / "final" / "classes.json").read_text()) == ["bright", "dark"]
