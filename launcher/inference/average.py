"""The command `average`: means of runs' weights, judged on validation images; the best becomes a run dir of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher.backbones.plain_names import plain_state_dict
from launcher.compat import end_workers, is_batch_norm
from launcher.errors import Problems, UserError
from launcher.files import json_text, replaced_folder, save_tensors
from launcher.inference.finished_run import FinishedRun, build_data, build_network, check_data, read_finished
from launcher.inference.soup import (
    Candidate,
    Ingredient,
    Judge,
    Weights,
    check_alike,
    greedy_soup,
    ingredients_of,
    interpolations,
    shown_result,
    statistics_differ,
)
from launcher.recipe.protocols import Split
from launcher.recipe.transforms import evaluation
from launcher.recipe.type_names import Types
from launcher.training.accelerator import start_accelerator
from launcher.training.batch_arithmetic import batching_for
from launcher.training.best import mode_of
from launcher.training.checked_images import checked_together
from launcher.training.data_identity import DataIdentity
from launcher.training.evaluation import metrics_of, outputs_of
from launcher.training.images import evaluation_loader
from launcher.training.launch import Launch
from launcher.training.setup import workers_of

COPIED = ("recipe.json", "recipe.py", "environment.json", "data.npz", "plan.json", "skipped.txt")


@dataclasses.dataclass(frozen=True)
class Averaged:
    """The result of `average`."""

    metric: str
    before: dict[str, float]
    """Metrics of the first run's `final/`."""
    candidates: list[Candidate]
    """Candidates in the order in which they were tried."""
    best: Candidate | None
    """Best candidate; None if none was better than `final/`."""
    recomputed: bool
    """True if BatchNorm's statistics were recomputed for each mean."""

    def shown(self, metrics: Mapping[str, float]) -> str:
        """Return the metrics that decide, as text: "accuracy 0.9542, loss 0.1210"."""
        return shown_result(metrics, self.metric)


def average(
    paths: Sequence[Path],
    to: Path,
    points: int,
    launch: Launch,
    *,
    report: Callable[[str], None],
    overwrite: bool,
    own: Types | None = None,
) -> Averaged:
    """Judge means of the weights of runs, and write the best to `to` if it is better than the first run's own weights.

    Raises UserError that lists all problems.
    """
    runs = _sound_runs(paths, to, overwrite, own)
    first = runs[0]
    accelerator = start_accelerator(first.recipe, launch, first.rundir.path)
    splits = check_data(first, build_data(first), checked_together(accelerator, report))
    task = first.recipe.task.build(splits)
    ingredients: list[Ingredient] = []
    for run in runs:
        final = build_network(run, task.num_outputs).state_dict()
        ingredients += ingredients_of(run, final) if len(runs) == 1 else [Ingredient(f"{run.rundir.path} final", final)]
    check_alike(ingredients)
    model = build_network(first, task.num_outputs)
    recomputes = statistics_differ(ingredients, model)
    known = {id(ingredient.weights) for ingredient in ingredients}
    batch_size = batching_for(first.recipe.batch_size, 1, None).micro_batch_size
    placed: Any = accelerator.prepare_model(model.to(memory_format=torch.channels_last), evaluation_mode=True)

    def loader_of(split: Split) -> Any:
        return evaluation_loader(
            split,
            evaluation(first.preprocessing),
            batch_size=batch_size,
            process_index=0,
            num_processes=1,
            num_workers=workers_of(launch),
            pin_memory=accelerator.device.type == "cuda",
        )

    val = loader_of(splits.val)

    def evaluate(weights: Weights) -> dict[str, float]:
        placed.load_state_dict(dict(weights))
        if recomputes and id(weights) not in known:
            _recompute_statistics(placed, loader_of(splits.train), accelerator.device)
            assert isinstance(weights, dict)
            weights |= {name: value.cpu().clone() for name, value in placed.state_dict().items()}
        outputs = outputs_of(accelerator, placed, val, len(splits.val), task.num_outputs, batch_size, lambda: None)
        return metrics_of(task, outputs, splits.val)

    metric = first.recipe.freeze_plan[-1].monitor or task.monitor
    judge = Judge(evaluate, metric, mode_of(metric, task.monitor, task.monitor_mode))
    try:
        candidates = greedy_soup(ingredients, judge, report)
        probe = next((ingredient for ingredient in ingredients if ingredient.is_head_alone), None)
        if probe is not None and len(runs) == 1 and probe is not ingredients[0]:
            candidates += interpolations(probe, ingredients[0], points, judge, report)
        elif len(runs) == 1:
            report(f"{paths[0]}: holds no weights of a head alone beside fine-tuned ones: nothing to interpolate")
    finally:
        end_workers(val)
    before = next(candidate.metrics for candidate in candidates if candidate.name == ingredients[0].name)
    best = max(candidates, key=lambda candidate: judge.rank(candidate.metrics))
    better = best if judge.rank(best.metrics) > judge.rank(before) else None
    result = Averaged(metric, before, candidates, better, recomputes)
    if result.best is not None:
        _write(first, result, result.best, model, to, paths)
    return result


def _sound_runs(paths: Sequence[Path], to: Path, overwrite: bool, own: Types | None) -> list[FinishedRun]:
    problems = Problems()
    runs: list[FinishedRun] = []
    for path in paths:
        with problems.collected():
            runs.append(read_finished(path, own))
    if to.exists() and not overwrite:
        problems.found.append(f"--to {to}: is there already; give another folder, or --overwrite")
    if to.exists() and overwrite and not (to / "averaged.json").is_file():
        problems.found.append(f"--to {to}: is no average, and is not overwritten; give another folder")
    if to.absolute() in {path.absolute() for path in paths}:
        problems.found.append(f"--to {to}: is one of the runs; give another folder")
    problems.raise_if_any()
    first = runs[0]
    if others := [run for run in runs[1:] if run.names != first.names or run.preprocessing != first.preprocessing]:
        problem = f"other classes or another preprocessing than {paths[0]}"
        raise UserError(*(f"{run.rundir.path}: {problem}" for run in others))
    _check_others(first, runs[1:])
    return runs


def _check_others(first: FinishedRun, others: Sequence[FinishedRun]) -> None:
    """Raise UserError for runs whose weights the first run's validation images cannot judge.

    Runs of an earlier version, which have not stored the hashes of their images, are accepted unchecked.
    """
    problems = Problems()
    units = {name: first.described["task"].get(name) for name in ("mean", "std")}
    judges: set[bytes] = set()
    with contextlib.suppress(UserError):
        judges = set(map(bytes, DataIdentity.load(first.rundir.path).val.digests)) if others else set()
    for run in others:
        if {name: run.described["task"].get(name) for name in units} != units:
            problems.found.append(
                f"{run.rundir.path}: its outputs are in other units than those of {first.rundir.path} (mean and std of "
                "the training targets); average runs of the same training images"
            )
        with contextlib.suppress(UserError):
            count = len(judges & set(map(bytes, DataIdentity.load(run.rundir.path).train.digests)))
            if count:
                problems.found.append(
                    f"{run.rundir.path}: was trained on {count:,} of the images that {first.rundir.path} was validated "
                    f"on ({len(judges):,} in all), which would judge it; average runs of the same split (the same seed)"
                )
    problems.raise_if_any()


@torch.no_grad()
def _recompute_statistics(model: nn.Module, loader: Any, device: torch.device) -> None:
    """Recompute BatchNorm's statistics from the evaluation views of all training images.

    They are the plain means over the batches.
    """
    norms = [module for module in model.modules() if is_batch_norm(module) and module.track_running_stats]
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then computes the plain mean over the batches
        norm.train()
    try:
        for batch in loader:
            model(batch.to(device).images)
    finally:
        end_workers(loader)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()


def _write(
    run: FinishedRun, averaged: Averaged, best: Candidate, model: nn.Module, to: Path, paths: Sequence[Path]
) -> None:
    """Write a run dir that evaluate, predict, export and report accept, under another name first, and rename it."""
    try:
        with replaced_folder(to) as draft:
            shutil.copytree(run.rundir.final, draft / "final")
            for name in COPIED:
                if (run.rundir.path / name).exists():
                    shutil.copy2(run.rundir.path / name, draft / name)
            (draft / "final/calibration.json").unlink(missing_ok=True)  # it belongs to other weights
            parts: dict[str, dict[str, torch.Tensor]] = {"backbone": {}, "head": {}}
            for name, tensor in best.weights.items():
                part, _, inner = name.partition(".")
                parts[part][inner] = tensor
            backbone = model.backbone
            assert isinstance(backbone, nn.Module)
            plain = plain_state_dict(backbone, parts["backbone"], parts["head"])
            tensors = {name: tensor.contiguous() for name, tensor in plain.items()}
            save_tensors(tensors, draft / "final/model.safetensors")
            (draft / "final/metrics.json").write_text(json_text(best.metrics, indent=1))
            content = {
                "best": best.name,
                "of": best.of,
                "metric": averaged.metric,
                "before": averaged.before,
                "statistics_recomputed": averaged.recomputed,
                "tried": [{"name": each.name, "of": each.of, "metrics": each.metrics} for each in averaged.candidates],
                "runs": [str(path) for path in paths],
            }
            (draft / "averaged.json").write_text(json_text(content, indent=1))
    except OSError as error:
        raise UserError(f"--to {to}: cannot be written ({_reason(error)})") from error


def _reason(error: OSError) -> str:
    """Return why a file, or the first such file while a folder was copied, could not be written."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list) and error.args[0]:
        message = str(error.args[0][0][2])
        number = re.match(r"\[Errno (\d+)\]", message)
        return os.strerror(int(number[1])) if number else message
    return error.strerror or str(error)
