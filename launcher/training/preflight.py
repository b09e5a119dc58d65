"""The checks before training, which report everything that can fail on one screen."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, Literal

from launcher.data.target_precision import build_splits
from launcher.errors import Problems, UserError, pip_install
from launcher.recipe.abilities import ChecksSettings
from launcher.recipe.phases import Phase, resolve_rules
from launcher.recipe.protocols import BuiltTask, Preprocessing, Splits
from launcher.recipe.recipe import Recipe
from launcher.training.batch_arithmetic import Batching, batching_for
from launcher.training.dry_run import try_one_batch, try_smallest_batch
from launcher.training.failures import part_at_work
from launcher.training.feature_cache.cut import Uncut, cut
from launcher.training.feature_cache.views import check_cache, fixed_views, in_words
from launcher.training.mixup import Mixing
from launcher.training.model import (
    TransferModel,
    build_model,
    changing_tensors,
    freeze,
    in_closed_form,
    norm_layers_that_train,
)

LARGEST_LR = 3.4e38
"""The largest float32 number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """The parameters of a phase that share one lr_scale."""

    lr_scale: float
    lr: float
    parameters: int
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedPhase:
    """A phase with its rules applied to the network."""

    phase: Phase
    number: int
    lr_scales: Mapping[str, float]
    groups: tuple[Group, ...]
    """The groups that train, from the highest learning rate to the lowest."""
    trainable_parameters: int
    total_parameters: int
    norm_layers: int
    """Number of BatchNorm layers that train."""
    changing: frozenset[str]
    """Parameters and buffers that the phase may change."""
    fixed_views: int | None
    """Number of augmented views of each image that the phase cycles through, which can be stored.

    0 means images without augmentation, None new augmentations in each epoch.
    """
    fixed_images: str | None
    """A description of the fixed images in words, if the recipe would otherwise augment them anew in each epoch."""
    first_epoch: int
    """Number of planned epochs before this phase; epochs are counted over the run, so that no order is used twice."""
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps planned for the phase."""
        return self.phase.epochs * self.steps_per_epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A recipe that passed all checks for this data, network and number of processes."""

    recipe: Recipe
    preprocessing: Preprocessing
    splits: Splits
    task: BuiltTask
    model: TransferModel
    batching: Batching
    phases: tuple[ResolvedPhase, ...]

    @property
    def base_lr(self) -> float:
        """Return the learning rate for this batch size, before schedule and lr_scale."""
        return self.recipe.optim.base_lr(self.recipe.batch_size)

    @functools.cached_property
    def mixing(self) -> Mixing:
        """Return the MixUp and CutMix settings.

        They are looked up only once, because a step on stored features takes less than a millisecond.
        """
        return Mixing.of(self.recipe.augment)


@dataclasses.dataclass(kw_only=True)
class Findings:
    """The parts of a recipe that could be built and checked, and everything that is wrong with it."""

    recipe: Recipe
    preprocessing: Preprocessing | None = None
    splits: Splits | None = None
    task: BuiltTask | None = None
    model: TransferModel | None = None
    batching: Batching | None = None
    phases: tuple[ResolvedPhase, ...] = ()
    """The phases whose rules fit the network."""
    problems: Problems = dataclasses.field(default_factory=Problems)

    def prepared(self) -> Prepared:
        """Return the prepared recipe. Raise UserError with every problem if there are any."""
        self.problems.raise_if_any()
        assert self.preprocessing is not None
        assert self.splits is not None
        assert self.task is not None
        assert self.model is not None
        assert self.batching is not None
        return Prepared(
            recipe=self.recipe,
            preprocessing=self.preprocessing,
            splits=self.splits,
            task=self.task,
            model=self.model,
            batching=self.batching,
            phases=self.phases,
        )


def prepare(
    recipe: Recipe,
    *,
    num_processes: int,
    micro_batch_size: int | Literal["auto"] | None,
    on_cpu: bool,
    one_at_a_time: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    check_images: Callable[[Recipe, Splits], Splits] = lambda _, splits: splits,
) -> Prepared:
    """Build and check everything. Raise UserError with all that is wrong.

    `one_at_a_time` wraps steps that may download (the first process of a machine goes before the others); the
    UserError of one process is that of all, for what follows is done by all of them together.
    `check_images` finds broken images.
    """
    return examine(
        recipe,
        num_processes=num_processes,
        micro_batch_size=micro_batch_size,
        on_cpu=on_cpu,
        one_at_a_time=one_at_a_time,
        check_images=check_images,
    ).prepared()


def examine(
    recipe: Recipe,
    *,
    num_processes: int,
    micro_batch_size: int | Literal["auto"] | None,
    on_cpu: bool,
    one_at_a_time: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    check_images: Callable[[Recipe, Splits], Splits] = lambda _, splits: splits,
) -> Findings:
    """Build and check everything like `prepare`, but return the problems together with what could be built."""
    findings = Findings(recipe=recipe)
    problems = findings.problems

    with problems.collected():
        _check_machine(recipe, on_cpu)
    with problems.collected():
        check_cache(recipe)
    with problems.collected():
        findings.batching = batching_for(recipe.batch_size, num_processes, micro_batch_size)
        if Mixing.of(recipe.augment) and findings.batching.micro_batch_size % 2:
            raise UserError(
                f"augment: MixUp and CutMix mix neighbours, so a micro-batch must be even, not "
                f"{findings.batching.micro_batch_size}; give an even --micro-batch that divides batch_size / processes"
            )
    with problems.collected():
        with one_at_a_time(), part_at_work("data"):
            splits = build_splits(recipe)
            _check_splits(splits)
        findings.splits = splits
    if findings.splits is not None:
        with problems.collected():
            findings.splits = check_images(recipe, findings.splits)
            with part_at_work("task"):
                findings.task = recipe.task.build(findings.splits)
    num_outputs = findings.task.num_outputs if findings.task else 2
    with problems.collected():
        with one_at_a_time():
            with part_at_work("backbone"):
                if isinstance(recipe.backbone, ChecksSettings):
                    recipe.backbone.check()
                findings.preprocessing = recipe.backbone.preprocessing()
            model = build_model(recipe.backbone, recipe.head, num_outputs, recipe.seed)
        findings.model = model
        findings.model.contiguous = recipe.memory_format == "contiguous"
    if findings.model is not None:
        # Without data the number of steps is unknown, but the phases' rules can still be checked.
        batching, splits = findings.batching, findings.splits
        steps_per_epoch = batching.steps_per_epoch(len(splits.train)) if batching and splits else 1
        findings.phases = tuple(resolve_phases(recipe, findings.model, steps_per_epoch, problems))
        with problems.collected():
            _check_head(recipe, findings.phases)
    if not problems.found:
        with problems.collected():
            _try(findings.prepared())
    return findings


def _try(prepared: Prepared) -> None:
    recipe, model, phases = prepared.recipe, prepared.model, prepared.phases
    try_one_batch(recipe, prepared.splits, prepared.task, model, phases[-1].lr_scales)
    updating = [p for p in phases if p.phase.norm_statistics == "update" and p.norm_layers]
    if updating:
        freeze(model, updating[-1].lr_scales)
        at, samples = f"freeze_plan.{updating[-1].number}", len(prepared.splits.train)
        try_smallest_batch(model, prepared.batching, samples, prepared.preprocessing, at)
    _check_cuts(prepared)


def _check_cuts(prepared: Prepared) -> None:
    """Raise UserError if features are to be stored and the network cannot be cut where a phase freezes it."""
    if prepared.recipe.cache not in ("memory", "disk"):
        return
    problems = []
    for resolved in prepared.phases:
        if 0 < resolved.trainable_parameters < resolved.total_parameters:
            freeze(prepared.model, resolved.lr_scales)
            parts = cut(prepared.model, resolved.phase.norm_statistics, prepared.preprocessing.image_size)
            if isinstance(parts, Uncut) and parts.reason is not None:
                problems.append(
                    f"cache={prepared.recipe.cache!r}: nothing can be stored for freeze_plan.{resolved.number} "
                    f"({resolved.phase.name}): {parts.reason}; use cache='auto'"
                )
    if problems:
        raise UserError(*problems)


def resolve_phases(
    recipe: Recipe, model: TransferModel, steps_per_epoch: int, problems: Problems
) -> list[ResolvedPhase]:
    """Apply each phase's rules to the network, and add what is wrong to `problems`."""
    parameters = dict(model.named_parameters())
    base_lr = 0.0
    with problems.collected(), part_at_work("optim"):
        base_lr = recipe.optim.base_lr(recipe.batch_size)
    resolved = []
    first_epoch = 0
    for number, phase in enumerate(recipe.freeze_plan):
        with problems.collected():
            scales = resolve_rules(phase, parameters, f"freeze_plan.{number}")
            if base_lr * max(scales.values()) > LARGEST_LR:
                raise UserError(
                    f"freeze_plan.{number}: a learning rate of {base_lr * max(scales.values()):.3g} (optim.lr for this "
                    f"batch_size, times lr_scale); float32 ends at {LARGEST_LR:.3g}"
                )
            freeze(model, scales)
            groups = [
                Group(
                    lr_scale=scale,
                    lr=base_lr * scale,
                    parameters=sum(parameters[name].numel() for name, s in scales.items() if s == scale),
                    names=tuple(name for name, s in scales.items() if s == scale),
                )
                for scale in sorted({scale for scale in scales.values() if scale > 0}, reverse=True)
            ]
            views = fixed_views(recipe, scales)
            resolved.append(
                ResolvedPhase(
                    phase=phase,
                    number=number,
                    lr_scales=scales,
                    groups=tuple(groups),
                    trainable_parameters=sum(group.parameters for group in groups),
                    total_parameters=sum(parameter.numel() for parameter in parameters.values()),
                    norm_layers=len(norm_layers_that_train(model)),
                    changing=frozenset(changing_tensors(model, phase.norm_statistics)),
                    fixed_views=views,
                    fixed_images=in_words(recipe, views),
                    first_epoch=first_epoch,
                    steps_per_epoch=steps_per_epoch,
                )
            )
        first_epoch += phase.epochs
    return resolved


def _check_head(recipe: Recipe, phases: tuple[ResolvedPhase, ...]) -> None:
    """Raise UserError if the first phase does not train a head in closed form: checkpoints would not hold the head."""
    if not in_closed_form(recipe.head) or not phases or phases[0].number != 0:
        return
    if all(scale == 0 for name, scale in phases[0].lr_scales.items() if name.startswith("head.")):
        raise UserError(
            f"head.init='ridge': freeze_plan.0 ({phases[0].phase.name}) does not train the head; give it a rate there, "
            "or use init='normal'"
        )


def _check_machine(recipe: Recipe, on_cpu: bool) -> None:
    problems = []
    if recipe.mixed_precision == "fp16" and on_cpu:
        problems.append(
            "mixed_precision='fp16': there is no GPU, and on a CPU fp16 would silently be float32; "
            "use mixed_precision=bf16 or mixed_precision=no"
        )
    if recipe.sync_batchnorm and on_cpu:
        problems.append("sync_batchnorm=True: PyTorch's SyncBatchNorm needs GPUs; use sync_batchnorm=false")
    # Accelerate would silently leave out a tracker that is not installed.
    missing = [name for name in recipe.trackers if importlib.util.find_spec(name) is None]
    problems += [f"trackers: {name!r} is not installed; {pip_install(name)}" for name in missing]
    if problems:
        raise UserError(*problems)


def _check_splits(splits: Splits) -> None:
    for name, split in (("training", splits.train), ("validation", splits.val)):
        if len(split) == 0:
            raise UserError(f"data: there are no {name} images")
