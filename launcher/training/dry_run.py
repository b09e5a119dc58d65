"""The dry run before training: a few images go through everything that a run will do with them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch

from launcher.errors import UserError, did_you_mean
from launcher.recipe.abilities import ReportsUndefined
from launcher.recipe.protocols import BuiltTask, Preprocessing, Splits
from launcher.recipe.recipe import Recipe
from launcher.recipe.transforms import evaluation
from launcher.text import plural
from launcher.training.batch_arithmetic import Batching
from launcher.training.failures import line_of
from launcher.training.images import Batch, EvaluationImages, TrainingImages, collate
from launcher.training.model import TransferModel, freeze, set_train_mode
from launcher.training.optimizer import build_optimizer


def try_one_batch(
    recipe: Recipe, splits: Splits, task: BuiltTask, model: TransferModel, lr_scales: Mapping[str, float]
) -> None:
    """Run a few training and validation images through network, loss and gradient, and the metrics on all targets.

    Raise UserError for anything that fails, for shapes other than those that the parts promise, and for a monitored
    metric that the task does not have. The weights of the network do not change, and it is left without gradients;
    `lr_scales` determine what trains.
    """
    preprocessing = recipe.backbone.preprocessing()
    train = TrainingImages(splits.train, recipe.augment.build(preprocessing), recipe.seed)
    val = EvaluationImages(splits.val, evaluation(preprocessing))
    freeze(model, lr_scales)
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            drawn = [train[0, index] for index in range(min(2, len(splits.train)))]
            if not torch.equal(train[0, 0][0], drawn[0][0]):
                raise UserError(
                    f"augment: {type(recipe.augment).__name__} gave two pictures for one seed, so no run could be "
                    "repeated or continued; draw from torch's, Python's or numpy's global generator (torch.rand, "
                    "random.random, numpy.random.rand), which are seeded for each sample, not from a generator of its "
                    "own"
                )
            batch: Batch = collate(drawn, train.transform).to(torch.device("cpu"))
            losses = task.loss(_outputs(model, batch, task.num_outputs, preprocessing), batch.targets)
            if losses.shape != (len(batch.targets),):
                raise UserError(
                    f"task: its loss gives {_shape(losses)} for {plural(len(batch.targets), 'image', spec='')}; it "
                    f"should be one number per image, ({len(batch.targets)},), not their mean"
                )
            torch.autograd.backward(losses.sum())
            build_optimizer(recipe.optim, model, lr_scales)
            with torch.no_grad():
                drawn = [val[index] for index in range(min(2, len(splits.val)))]
                batch = collate(drawn, val.transform).to(torch.device("cpu"))
                task.loss(model(batch.images), batch.targets)
                # The names of the metrics depend on the targets (AUROC needs every class), so all targets are used.
                targets = torch.as_tensor(splits.val.targets)
                metrics = task.metrics(torch.rand(len(targets), task.num_outputs), targets)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"a trial batch failed: {line_of(error)}") from error
    finally:
        model.zero_grad(set_to_none=True)
    monitored = {f"freeze_plan.{n}.monitor": p.monitor for n, p in enumerate(recipe.freeze_plan) if p.monitor}
    undefined = task.undefined(targets) if isinstance(task, ReportsUndefined) else {}
    if len(monitored) < len(recipe.freeze_plan) or task.monitor not in undefined:
        monitored["task: monitor"] = task.monitor
    wrong = [
        f"{field}={name!r}: {_why_no_metric(name, metrics, undefined)}"
        for field, name in monitored.items()
        if name not in metrics
    ]
    if wrong:
        raise UserError(*wrong)


def try_smallest_batch(
    model: TransferModel, batching: Batching, num_samples: int, preprocessing: Preprocessing, at: str
) -> None:
    """Raise UserError if BatchNorm would have to compute its statistics from a single value.

    A network whose last maps are 1x1 pixels (ResNet at 32 px) has one value per channel for each image of a
    micro-batch, and the last batch of an epoch may leave a micro-batch of one image. `at` names the phase that updates
    the statistics.
    """
    if min(_micro_batch_sizes(batching, num_samples)) > 1:
        return
    trained = copy.deepcopy(model)
    set_train_mode(trained, "update")
    size = preprocessing.image_size
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trained(torch.zeros(1, 3, size, size))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"{at}.norm_statistics='update': {batching} leaves micro-batches of one image "
            f"({plural(num_samples, 'image', spec='')} per epoch), and at this image size BatchNorm has no statistics "
            "of one; use norm_statistics=keep, another batch_size, or a larger backbone.image_size"
        ) from error


def _micro_batch_sizes(batching: Batching, num_samples: int) -> Iterator[int]:
    last = num_samples - (batching.steps_per_epoch(num_samples) - 1) * batching.batch_size
    for taken in {min(batching.batch_size, num_samples), last}:
        for process_index in range(batching.num_processes):
            for piece in batching.micro_slices(taken, process_index):
                yield max(1, piece.stop - piece.start)  # an empty micro-batch holds one image with weight 0


def _outputs(model: TransferModel, batch: Batch, num_outputs: int, preprocessing: Preprocessing) -> torch.Tensor:
    num_images, size = len(batch.images), preprocessing.image_size
    if batch.images.shape[1:] != (3, size, size):
        raise UserError(f"augment: gives images of {_shape(batch.images[0])}; the backbone's are (3, {size}, {size})")
    features = model.backbone(batch.images)
    width = getattr(model.backbone, "num_features", None)
    if not isinstance(features, torch.Tensor) or features.shape != (num_images, width):
        raise UserError(
            f"backbone: gives {_shape(features)} for {plural(num_images, 'image', spec='')}, and says "
            f"num_features={width}; should be ({num_images}, num_features)"
        )
    outputs: torch.Tensor = model.head(features)
    if outputs.shape != (num_images, num_outputs):
        raise UserError(
            f"head: gives {_shape(outputs)} for {plural(num_images, 'image', spec='')}; "
            f"should be ({num_images}, {num_outputs})"
        )
    return outputs


def _why_no_metric(name: str, metrics: Mapping[str, float], undefined: Mapping[str, str]) -> str:
    if name not in undefined:
        return f"no such metric{did_you_mean(name, tuple(metrics))}"
    others = ", ".join(metric for metric in metrics if "/" not in metric)
    return f"not defined on this validation set: {undefined[name]}; choose another as the phases' monitor: {others}"


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
