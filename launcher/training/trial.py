"""The trial before training: a few images through everything that a run will do with them."""

from __future__ import annotations

import traceback
from collections.abc import Mapping

import torch

from launcher.errors import UserError, did_you_mean
from launcher.recipe.protocols import BuiltTask, Splits
from launcher.recipe.recipe import Recipe
from launcher.recipe.transforms import evaluation
from launcher.training.images import Batch, EvaluationImages, TrainingImages, collate
from launcher.training.model import TransferModel, freeze


def try_one_batch(
    recipe: Recipe, splits: Splits, task: BuiltTask, model: TransferModel, lr_scales: Mapping[str, float]
) -> None:
    """Two training and two validation images through the network, the loss and the gradient; the metrics on all targets.

    Raises UserError for what breaks, and for a monitored metric that the task does not have. The network is left as it
    was, without gradients; `lr_scales` say what trains.
    """
    preprocessing = recipe.backbone.preprocessing()
    train = TrainingImages(splits.train, recipe.augment.build(preprocessing), recipe.seed)
    val = EvaluationImages(splits.val, evaluation(preprocessing))
    freeze(model, lr_scales)
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            batch: Batch = collate([train[0, index] for index in range(min(2, len(splits.train)))])
            task.loss(model(batch.images), batch.targets).sum().backward()
            with torch.no_grad():
                batch = collate([val[index] for index in range(min(2, len(splits.val)))])
                task.loss(model(batch.images), batch.targets)
                # The names of the metrics depend on the targets (AUROC needs every class), so all of them are given.
                targets = torch.as_tensor(splits.val.targets)
                metrics = task.metrics(torch.rand(len(targets), task.num_outputs), targets)
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1]
        raise UserError(
            f"a trial batch failed: {type(error).__name__}: {error} (at {last.filename}:{last.lineno})"
        ) from error
    finally:
        model.zero_grad(set_to_none=True)
    wrong = [
        f"freeze_plan.{number}.monitor={phase.monitor!r}: no such metric{did_you_mean(phase.monitor, tuple(metrics))}"
        for number, phase in enumerate(recipe.freeze_plan)
        if phase.monitor is not None and phase.monitor not in metrics
    ]
    if wrong:
        raise UserError(*wrong)
