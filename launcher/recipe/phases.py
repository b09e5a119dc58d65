"""Freeze phases: which parameters train, at which fraction of the learning rate, and for how long.

A freeze plan is a tuple of phases; freeze plans are joined with `+`:

    linear_probe(epochs=3) + full_finetune(epochs=12, backbone_lr_scale=0.1)

Rules are an ordered list of (glob, lr_scale) over dotted parameter names, as in big_vision: the first match wins, a
scale of 0 freezes, every parameter must be covered, and a rule that decides nothing is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from launcher.errors import UserError, did_you_mean
from launcher.recipe.part import part
from launcher.text import plural

Rule: TypeAlias = tuple[str, Annotated[float, Field(ge=0)]]
"""Pair (glob over dotted parameter names, lr_scale); a bare module path ("backbone.layer4") covers all below it."""

NormStatistics: TypeAlias = Literal["keep", "update"]


@part
class Phase:
    """A stretch of training with one set of freeze rules."""

    name: str = Field(min_length=1)
    rules: tuple[Rule, ...] = Field(min_length=1)
    epochs: int = Field(ge=1, le=1_000_000)
    norm_statistics: NormStatistics = "keep"
    """Running statistics of BatchNorm layers that train. "keep" uses the pretrained ones and leaves them unchanged (the
    affine parameters still train, and every split of the batch gives the same result); "update" normalises with the
    statistics of the batch and updates the running ones. Frozen layers always keep theirs."""
    patience: int | None = Field(default=None, ge=1)
    """Number of epochs without a better monitored metric after which the phase ends and the best weights are
    restored. None: no early stop."""
    monitor: str | None = None
    """Metric that decides which weights are best, e.g. "macro_f1" or "loss". None: the task's own choice."""


def linear_probe(*, epochs: int, patience: int | None = None, monitor: str | None = None) -> tuple[Phase, ...]:
    """Return a freeze plan of one phase that trains the head alone."""
    rules = (("head", 1.0), ("backbone", 0.0))
    return _plan("linear_probe", rules, epochs, "keep", patience, monitor)


def full_finetune(
    *,
    epochs: int,
    backbone_lr_scale: float = 0.1,
    norm_statistics: NormStatistics = "keep",
    patience: int | None = None,
    monitor: str | None = None,
) -> tuple[Phase, ...]:
    """Return a freeze plan of one phase that trains all, the backbone at `backbone_lr_scale` of the head's rate."""
    rules = (("head", 1.0), ("backbone", backbone_lr_scale))
    return _plan("full_finetune", rules, epochs, norm_statistics, patience, monitor)


def gradual_unfreeze(
    modules: Iterable[str],
    *,
    epochs: int,
    backbone_lr_scale: float = 0.1,
    depth_decay: float = 1.0,
    norm_statistics: NormStatistics = "keep",
    patience: int | None = None,
    monitor: str | None = None,
) -> tuple[Phase, ...]:
    """Return a freeze plan that unfreezes one more of `modules` in each phase, from the output to the input.

    `gradual_unfreeze(["backbone.layer4", "backbone.layer3"], epochs=2)` trains the head and layer4 for 2 epochs, then
    layer3, too, for 2 more (ULMFiT, arXiv 1801.06146, section 3.3). Each module trains at `depth_decay` of the rate of
    the one before it in `modules`.
    """
    plan: tuple[Phase, ...] = ()
    rules: tuple[tuple[str, float], ...] = (("head", 1.0),)
    for depth, module in enumerate(modules):
        rules += ((module, backbone_lr_scale * depth_decay**depth),)
        name = f"unfreeze_{module.removeprefix('backbone.')}"
        plan += _plan(name, (*rules, ("backbone", 0.0)), epochs, norm_statistics, patience, monitor)
    return plan


def layer_decay(
    layers: Iterable[str],
    *,
    epochs: int,
    decay: float = 0.75,
    norm_statistics: NormStatistics = "keep",
    patience: int | None = None,
    monitor: str | None = None,
) -> tuple[Phase, ...]:
    """Return a freeze plan of one phase that trains all, each of `layers` at `decay` of the rate of the next.

    `layers` are in order from the input to the output. The last of them trains at `decay` of the head's rate;
    parameters in none of them (patch embedding, stem) train like one more layer at the input (BEiT, arXiv 2106.08254,
    appendix).
    """
    ordered = list(layers)
    rules: list[tuple[str, float]] = [("head", 1.0)]
    rules += [(layer, decay**power) for power, layer in enumerate(reversed(ordered), 1)]
    rules.append(("backbone", decay ** (len(ordered) + 1)))
    return _plan("layer_decay", tuple(rules), epochs, norm_statistics, patience, monitor)


def _plan(
    name: str,
    rules: tuple[Rule, ...],
    epochs: int,
    norm_statistics: NormStatistics,
    patience: int | None,
    monitor: str | None,
) -> tuple[Phase, ...]:
    phase = Phase(
        name=name, rules=rules, epochs=epochs, norm_statistics=norm_statistics, patience=patience, monitor=monitor
    )
    return (phase,)


def matches(pattern: str, name: str) -> bool:
    """Return whether a rule's pattern covers a dotted name: as the name itself, a module path above it, or a glob.

    "features.1" covers "features.1.weight" but not "features.10.weight"; `*` also matches dots ("*.bias").
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def resolve_rules(phase: Phase, names: Iterable[str], at: str) -> Mapping[str, float]:
    """Return the lr_scale of every parameter by its name, in the order of `names`.

    `at` names the phase in errors ("freeze_plan.0"). Raises UserError that lists every rule that decides nothing and
    the parameters without a rule, or says that the phase trains nothing.
    """
    names = list(names)
    scales: dict[str, float] = {}
    problems: list[str] = []
    for number, (pattern, lr_scale) in enumerate(phase.rules):
        matched = [name for name in names if matches(pattern, name)]
        fresh = [name for name in matched if name not in scales]
        if not matched:
            modules = sorted({name.rsplit(".", depth)[0] for name in names for depth in (1, 2)})
            hint = did_you_mean(pattern, modules) if any(c.isalnum() for c in pattern) else ""
            if "did you mean" not in hint:
                hint = f"; parameters are named like {', '.join(names[:2])}, {names[-1]}"
            problems.append(f"{at}.rules.{number}: pattern {pattern!r} matches no parameter{hint}")
        elif not fresh:
            problems.append(
                f"{at}.rules.{number}: pattern {pattern!r} decides nothing: the rules before it cover all that it "
                "matches (the first match wins); remove it or move it up"
            )
        scales.update(dict.fromkeys(fresh, lr_scale))
    missing = [name for name in names if name not in scales]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        problems.append(
            f"{at} ({phase.name}): no rule covers {plural(len(missing), 'parameter', spec='')}: "
            f"{shown}; end with ('*', 0.0)"
        )
    elif not any(scales.values()):
        problems.append(f"{at} ({phase.name}): every rule has lr_scale 0, so nothing would train")
    if problems:
        raise UserError(*problems)
    return {name: scales[name] for name in names}
