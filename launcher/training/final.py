"""The end of a run: `final/`, which is readable without this package, and one line with the result."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch

from launcher.backbones.plain_names import classifier_name_of, plain_state_dict
from launcher.errors import UserError
from launcher.files import json_text, metrics_from_json, replaced_folder, save_tensors
from launcher.recipe.abilities import DescribesPlainNetwork
from launcher.recipe.serialization import to_json
from launcher.text import duration, listed, number, plural
from launcher.training.collectives import raised_on_all
from launcher.training.evaluation import KeptOutputs, outputs_of
from launcher.training.heap import give_back, keep_freed
from launcher.training.model import load_state
from launcher.training.run import Run
from launcher.training.run_checkpoint import check_owner
from launcher.training.run_dir import RunDir
from launcher.training.stop_request import StoppedError


def finish(run: Run) -> None:
    """Write `final/` from the best or the last checkpoint, and print the result and, if useful, what to run next."""
    step = chosen_step(run)
    metrics: dict[str, float] = {}
    with raised_on_all(run.accelerator):
        if run.accelerator.is_main_process:
            check_owner(run)
            metrics = metrics_at(run.rundir, step, averaged=run.recipe.ema_decay is not None)
            keep_freed(False)
            give_back()
            if not run.rundir.finished or run.rundir.damage_of_final() is not None:
                write_final(run, step, metrics)
    if run.accelerator.is_main_process:
        run.screen.line(summary(run, step, metrics), style="bold green")
        if advice := longer(run, step):
            run.screen.line(advice)
    run.accelerator.wait_for_everyone()


def chosen_step(run: Run) -> int:
    """Return the step whose weights `final/` would hold if the run ended now: the best or the last one."""
    best = run.progress.run_best
    return best.step if run.recipe.final_weights == "best" and best is not None else run.progress.step


def keep_outputs(run: Run, outputs: torch.Tensor) -> None:
    """Keep an evaluation's outputs if `final/` would hold its weights, so that nothing is evaluated again at the end.

    This is called after each evaluation has been recorded.
    """
    if run.accelerator.is_main_process and chosen_step(run) == run.progress.step:
        run.kept = KeptOutputs(run.progress.step, outputs)


def final_outputs(run: Run) -> torch.Tensor | None:
    """Return, on the main process, the outputs of the weights of `final/` on the validation images.

    They are kept in memory or in the checkpoint; if a checkpoint of an older version lacks them, they are computed
    again. Return None if the run is asked to stop meanwhile. All processes must call this.
    """
    step = chosen_step(run)
    if run.accelerator.is_main_process and (run.kept is None or run.kept.step != step):
        stored = run.rundir.checkpoints.load_outputs(run.rundir.checkpoints.of_step(step))
        run.kept = None if stored is None else KeptOutputs(step, stored)
    if run.interruption.anywhere(run.kept is not None and run.kept.step == step):
        return run.kept.outputs if run.kept else None
    state = run.rundir.checkpoints.load(run.rundir.checkpoints.of_step(step), only_model=True)
    model = copy.deepcopy(run.model)
    load_state(model, state.model | (state.ema or {}))
    placed = run.accelerator.prepare_model(model.to(memory_format=torch.channels_last), evaluation_mode=True)

    sizes = len(run.prepared.splits.val), run.prepared.task.num_outputs, run.val_batch_size
    try:
        batches = run.watchdog.reading(run.val_loader)
        return outputs_of(
            run.accelerator, placed, batches, *sizes, lambda: run.check_in("evaluation of the final weights")
        )
    except StoppedError:
        return None


def metrics_at(rundir: RunDir, step: int, *, averaged: bool) -> dict[str, float]:
    """Return the validation metrics of the epoch that ended at `step`, for the averaged weights if `averaged`."""
    rows = map(json.loads, rundir.metrics_jsonl.read_bytes().splitlines())
    epochs = (row for row in rows if row["event"] == "epoch")
    metrics: dict[str, float | None] = next(row["val"] for row in epochs if row["step"] == step)
    if averaged:
        metrics = {name.removeprefix("ema_"): value for name, value in metrics.items() if name.startswith("ema_")}
    return metrics_from_json(metrics)


def write_final(run: Run, step: int, metrics: dict[str, float]) -> None:
    """Write `final/` to a draft folder and rename it, so that `final/` is either complete or absent.

    It holds model.safetensors (with the names of the plain network), model.json (how to build it), classes.json,
    preprocess.json and metrics.json.
    """
    rundir, recipe, prepared = run.rundir, run.recipe, run.prepared
    checkpoints = rundir.checkpoints
    state = checkpoints.load(checkpoints.of_step(step), only_model=True)
    weights = state.model | (state.ema or {})
    backbone = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    head = {k.removeprefix("head."): v for k, v in weights.items() if k.startswith("head.")}
    plain = plain_state_dict(run.model.backbone, backbone, head)
    trained = sorted(frozenset().union(*(phase.changing for phase in prepared.phases)))
    if broken := [name for name in trained if not bool(weights[name].isfinite().all())]:
        raise UserError(
            f"{rundir.path}: the weights after step {step}, which final/ would hold, are not finite "
            f"({listed(broken, 1)}); use a lower optim.lr, in another --run-dir"
        )
    if isinstance(recipe.backbone, DescribesPlainNetwork):
        network = recipe.backbone.plain()
    else:
        network = {"library": None, "backbone": to_json(recipe.backbone)}
    model: dict[str, Any] = {
        **network,
        "head": to_json(recipe)["head"],
        "classifier_name": classifier_name_of(run.model.backbone),
        "num_outputs": prepared.task.num_outputs,
        "task": prepared.task.describe(),
        "step": step,
    }
    preprocessing = to_json(prepared.preprocessing)
    preprocessing.pop("type", None)
    contents = {
        "model.json": model,
        "classes.json": list(prepared.splits.names),
        "preprocess.json": preprocessing,
        "metrics.json": metrics,
    }
    with replaced_folder(rundir.final) as draft:
        save_tensors({name: tensor.contiguous() for name, tensor in plain.items()}, draft / "model.safetensors")
        for name, content in contents.items():
            # A class may be a folder whose name is not valid text; escaped, it is still valid JSON.
            (draft / name).write_bytes(json_text(content, indent=1).encode("utf-8", "backslashreplace"))


def summary(run: Run, step: int, metrics: dict[str, float]) -> str:
    """Return one line with the result of the run."""
    metric = run.prepared.phases[-1].phase.monitor or run.prepared.task.monitor
    best = run.progress.run_best
    where = f" ({best.phase} epoch {best.epoch})" if best and best.step == step else " (last epoch)"
    return (
        f"done: {metric} {number(metrics[metric])}{where} on "
        f"{plural(len(run.prepared.splits.val), 'validation image', spec='')} after {duration(run.progress.seconds)}"
    )


def longer(run: Run, step: int) -> str:
    """Advise to double the epochs of the phase whose last epoch is the best of the run.

    Return an empty string if the best epoch of that phase is an earlier one, or if `patience` ended it.
    """
    best = run.progress.run_best
    if best is None or best.step != step:
        return ""
    number = max(place for place, phase in enumerate(run.recipe.freeze_plan) if phase.name == best.phase)
    epochs = run.recipe.freeze_plan[number].epochs
    if best.epoch < epochs:
        return ""
    command = run.command.into(f"{run.rundir.path}-longer", {f"freeze_plan.{number}.epochs": 2 * epochs})
    return f"the last epoch of {best.phase} is the best; to train longer: {command}"
