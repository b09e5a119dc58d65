"""A run that has ended, restored from its run dir: recipe, data, task, and trained network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from launcher.assets.bundle import assets_folder
from launcher.backbones import Timm, Torchvision
from launcher.backbones.plain_names import plain_state_dict
from launcher.data import Torchvision as TorchvisionData
from launcher.data.target_precision import build_splits
from launcher.errors import UserError
from launcher.files import read_json, read_metrics, refuse_endless
from launcher.recipe.built_tasks import BuiltRegression
from launcher.recipe.protocols import Backbone, BuiltTask, Preprocessing, Split, Splits
from launcher.recipe.recipe import Recipe
from launcher.recipe.serialization import from_json
from launcher.recipe.tasks import Classification, MultiLabel, Regression
from launcher.recipe.type_names import Types
from launcher.text import plural
from launcher.training.model import TransferModel, build_model
from launcher.training.run_dir import RunDir

OUTPUT_FOR_EACH_NAME = ("classification", "multi-label", "regression")
"""Tasks whose network has as many outputs as the data has names; a user's own task may have another number."""
SMALLEST_STD = 1e-6
"""Smallest standard deviation of pixels from 0 to 1."""
MAX_SIDE = 16384
"""Most pixels of an image's side; backbones take no more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A finished run, as its run dir describes it."""

    rundir: RunDir
    recipe: Recipe
    """Recipe of the training, but its backbone is built without the weights with which the training began."""
    preprocessing: Preprocessing
    metrics: dict[str, float]
    """Metrics on the validation images from `final/metrics.json`, computed during the training."""
    step: int
    """Optimizer step after which the weights were those of `final/`."""
    names: tuple[str, ...]
    """Names of classes, labels or targets from `final/classes.json`, in the order of the outputs."""
    described: Mapping[str, Any]
    """Content of `final/model.json`."""

    @property
    def weights(self) -> Path:
        return self.rundir.final / "model.safetensors"


def read_finished(path: Path, own: Types | None = None) -> FinishedRun:
    """Restore a run from its files, none of which is run as code.

    `own` holds the classes of parts that are not launcher's (see `recipe.loading.types_of`). Raises UserError for a
    folder that is no run dir, a run that has not ended, damaged files, and parts that are neither launcher's nor in
    `own`.
    """
    rundir = RunDir(path)
    if not rundir.recipe_json.is_file():
        raise UserError(f"{path}: no run dir (it has no recipe.json)" if path.is_dir() else f"{path}: no such run dir")
    refuse_endless(path)
    if not rundir.finished:
        raise UserError(f"{path}: this run has not ended; the command that began it continues it")
    recipe = _recipe(rundir, own)
    described = _object(rundir.final / "model.json")
    names = read_json(rundir.final / "classes.json")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{rundir.final / 'classes.json'}: must be a list of names")
    num_outputs, task = described.get("num_outputs"), described.get("task")
    if isinstance(task, dict) and task.get("kind") in OUTPUT_FOR_EACH_NAME and num_outputs != len(names):
        raise UserError(
            f"{rundir.final}: classes.json has {plural(len(names), 'name', spec='')}, "
            f"but the network of model.json {num_outputs!r} {'output' if num_outputs == 1 else 'outputs'}"
        )
    return FinishedRun(
        rundir=rundir,
        recipe=dataclasses.replace(recipe, backbone=_as_trained(recipe.backbone, described, rundir.final)),
        preprocessing=_preprocessing(rundir.final / "preprocess.json"),
        metrics=read_metrics(rundir.final / "metrics.json"),
        step=_step(rundir.final / "model.json", described),
        names=tuple(names),
        described=described,
    )


def build_data(finished: FinishedRun) -> Splits:
    """Build the splits of the recipe's data part, which are the same on every process."""
    return build_splits(finished.recipe)


def check_data(finished: FinishedRun, splits: Splits, check_images: Callable[[Recipe, Splits], Splits]) -> Splits:
    """Return the splits of the run, without the broken images that it left out, which `check_images` finds.

    `check_images` is called only if the run left some out. Raises UserError if the data are not those of the run.
    """
    if (finished.rundir.path / "skipped.txt").is_file():
        splits = check_images(finished.recipe, splits)
    if changed := finished.rundir.changes_of_data(splits):
        raise UserError(f"{finished.rundir.path}: the data are not those of the run ({'; '.join(changed)})")
    return splits


def build_network(finished: FinishedRun, num_outputs: int) -> TransferModel:
    """Return the network with the weights of `final/`, on the CPU and in evaluation mode.

    Raises UserError if they do not fit.
    """
    recipe = finished.recipe
    model = build_model(recipe.backbone, recipe.head, num_outputs, recipe.seed)
    load_plain(model, finished.weights)
    return model.eval()


def build_task_alone(finished: FinishedRun, split: Split) -> BuiltTask:
    """Build the task without the run's training images.

    The weights of classes, which are computed from these, count only in training. Raises UserError if the task cannot
    be built in this way.
    """
    task = finished.recipe.task
    if isinstance(task, Classification):
        task = dataclasses.replace(task, class_weights=None)
    if isinstance(task, MultiLabel):
        task = dataclasses.replace(task, pos_weight=None)
    if isinstance(task, Regression):
        about = finished.described["task"]
        return BuiltRegression(task.loss, finished.names, np.asarray(about["mean"]), np.asarray(about["std"]))
    return task.build(Splits(split, split, finished.names))


def load_plain(model: TransferModel, file: Path) -> None:
    """Put the weights of a `final/model.safetensors` into the network: all of them, and nothing else.

    Raises UserError for a broken file, and for tensors that are missing, left over or of another shape.
    """
    try:
        stored = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    # These tensors, under the plain network's names, are not copies: writing to them writes to the model.
    own = plain_state_dict(model.backbone, model.backbone.state_dict(), model.head.state_dict())
    wrong = [f"{name} is missing" for name in own if name not in stored]
    wrong += [f"{name} is not of this network" for name in stored if name not in own]
    for name in own.keys() & stored.keys():
        if own[name].shape != stored[name].shape:
            wrong.append(f"{name} is {tuple(stored[name].shape)}, not {tuple(own[name].shape)}")
    if wrong:
        others = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{file}: does not fit the network of recipe.json: {'; '.join(sorted(wrong)[:3])}{others}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(stored[name])


def _as_trained(backbone: Backbone, described: Mapping[str, Any], final: Path) -> Backbone:
    """Return the backbone with weights from `final/`; those of before the training may not be on this machine."""
    if not isinstance(backbone, (Torchvision, Timm)):
        return backbone
    name = str(described.get("name"))
    if name.partition(".")[0] != backbone.name.partition(".")[0]:
        raise UserError(f"{final / 'model.json'}: describes a {name}, but recipe.json names a {backbone.name}")
    # The full name is used because timm might choose another variant without the tag of the first weights.
    backbone = dataclasses.replace(backbone, name=name, weights=str(final.absolute()))
    return dataclasses.replace(backbone, match_by_order=False) if isinstance(backbone, Timm) else backbone


def _recipe(rundir: RunDir, own: Types | None) -> Recipe:
    content = read_json(rundir.recipe_json)
    try:
        recipe = from_json(content, own)
    except RecursionError as error:
        raise UserError(f"{rundir.recipe_json}: cannot be read (nested too deeply)") from error
    except UserError as error:
        raise UserError(*(f"{rundir.recipe_json}: {problem}" for problem in error.problems)) from error
    if not isinstance(recipe, Recipe):
        raise UserError(f"{rundir.recipe_json}: holds a {type(recipe).__name__}, not a recipe")
    data = recipe.data
    if isinstance(data, TorchvisionData) and data.download and assets_folder() is None:
        # The downloaded data are in `root`; a run dir from somebody else must not cause writes there.
        return dataclasses.replace(recipe, data=dataclasses.replace(data, download=False))
    return recipe


def _object(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file}: must hold a JSON object, not a {type(content).__name__}")
    return content


def _preprocessing(file: Path) -> Preprocessing:
    try:
        about = Preprocessing(**_object(file))
        _check_preprocessing(about)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: does not describe a preprocessing ({error})") from error
    return about


def _check_preprocessing(about: Preprocessing) -> None:
    for name in ("image_size", "resize_size"):
        side = getattr(about, name)
        if type(side) is not int or not 1 <= side <= MAX_SIDE:
            raise ValueError(f"{name} must be a whole number from 1 to {MAX_SIDE}, and is {side!r}")
    if not len(about.mean) == len(about.std) == 3 or not all(math.isfinite(each) for each in (*about.mean, *about.std)):
        raise ValueError("mean and std must be three numbers each")
    if min(about.std) < SMALLEST_STD:
        raise ValueError(f"std must be at least {SMALLEST_STD}")


def _step(file: Path, described: Mapping[str, Any]) -> int:
    if type(described.get("step")) is not int:
        raise UserError(f"{file}: 'step' must be a whole number, and is {described.get('step')!r}")
    return int(described["step"])
