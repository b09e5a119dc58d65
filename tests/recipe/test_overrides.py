"""Overrides reach scalars of parts and of plain dataclasses, and every mistake gets one line that helps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import pytest
from pydantic import Field

from launcher.errors import UserError
from launcher.recipe.overrides import apply_overrides
from launcher.recipe.part import part


@runtime_checkable
class HasRate(Protocol):
    lr: float


@part
class Adam:
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    nesterov: bool = False


@part
class Weights:
    weights: str | None = "IMAGENET1K_V2"
    name: str = "resnet50"


@part
class Stretch:
    epochs: int = Field(default=3, ge=1)
    rules: tuple[tuple[str, float], ...] = (("head", 1.0), ("backbone", 0.0))


@part
class Mix:
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")


@dataclasses.dataclass(frozen=True)
class OwnHead:
    """A user's plain dataclass, which nothing validates."""

    dropout: float = 0.0
    hidden: int | None = None
    where: Path = Path("a")
    anything: Any = 1
    note: str = ""

    def __post_init__(self) -> None:
        if self.dropout >= 1:
            raise ValueError("dropout must be below 1")


class NotADataclass:
    lr = 1.0


@part
class Whole:
    optim: HasRate = Field(default_factory=Adam)  # type: ignore[assignment]
    backbone: Weights = Field(default_factory=Weights)
    head: Any = Field(default_factory=OwnHead)
    plan: tuple[Stretch, ...] = (Stretch(), Stretch())
    mix: Mix | None = None
    blend: Mix = Field(default_factory=Mix)
    batch_size: int = Field(default=64, ge=1)
    clip_norm: float | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    other: Any = Field(default_factory=NotADataclass)


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("optim.lr=3e-4", lambda w: w.optim.lr, 3e-4),
        ("optim.betas=0.8,0.9", lambda w: w.optim.betas, (0.8, 0.9)),
        ("optim.betas.1=0.99", lambda w: w.optim.betas, (0.9, 0.99)),
        ("optim.nesterov=true", lambda w: w.optim.nesterov, True),
        ("plan.0.epochs=5", lambda w: [p.epochs for p in w.plan], [5, 3]),
        ("plan.1.rules.1.1=0.5", lambda w: w.plan[1].rules, (("head", 1.0), ("backbone", 0.5))),
        ("backbone.weights=none", lambda w: w.backbone.weights, None),
        ("backbone.name=none", lambda w: w.backbone.name, "none"),
        ("backbone.weights=/a=b/c,d e.pth", lambda w: w.backbone.weights, "/a=b/c,d e.pth"),
        ("backbone.name=", lambda w: w.backbone.name, ""),
        ("batch_size=8", lambda w: w.batch_size, 8),
        ("clip_norm=1", lambda w: w.clip_norm, 1.0),
        ("precision=bf16", lambda w: w.precision, "bf16"),
        ("trackers=tensorboard", lambda w: w.trackers, ("tensorboard",)),
        ("trackers=tensorboard, wandb", lambda w: w.trackers, ("tensorboard", "wandb")),
        ("trackers=", lambda w: w.trackers, ()),
        ("class_weights=balanced", lambda w: w.class_weights, "balanced"),
        ("class_weights=1,2.5", lambda w: w.class_weights, (1.0, 2.5)),
        ("head.dropout=0.5", lambda w: w.head.dropout, 0.5),
        ("head.hidden=12", lambda w: w.head.hidden, 12),
        ("head.where=b/c", lambda w: w.head.where, Path("b/c")),
        ("head.anything=7", lambda w: w.head.anything, 7),
    ],
)
def test_a_value_is_read_as_its_field_declares(override: str, read: Any, expected: object) -> None:
    before = Whole()
    snapshot = repr(dataclasses.replace(before, other=None))
    value = read(apply_overrides(before, [override]))
    assert value == expected
    assert type(value) is type(expected)
    assert repr(dataclasses.replace(before, other=None)) == snapshot


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optim.lrr=3e-4", "optim.lrr: Adam has no field 'lrr'; did you mean 'lr'?"),
        ("lr=1e-3", "lr: Whole has no field 'lr'; did you mean optim.lr?"),
        ("epochs=5", "epochs: Whole has no field 'epochs'; did you mean plan.0.epochs or plan.1.epochs?"),
        ("optim.name=x", "optim.name: Adam has no field 'name'; there are: lr, betas, nesterov"),
        ("optimm.lr=1", "optimm.lr: Whole has no field 'optimm'; did you mean 'optim'?"),
        (
            "optim=adam",
            "optim: is Adam(...), a part; change it in the recipe file, or override one of its fields: optim.lr, "
            "optim.betas, optim.nesterov",
        ),
        (
            "plan=3",
            "plan: is a tuple of 2; change it in the recipe file, or reach into one of its items: plan.0, plan.1",
        ),
        ("plan.2.epochs=5", "plan.2.epochs: no item '2'; plan has items 0 to 1"),
        ("plan.-1.epochs=5", "plan.-1.epochs: no item '-1'; plan has items 0 to 1"),
        ("trackers.0=wandb", "trackers.0: no item '0'; trackers is empty"),
        ("optim.lr", "optim.lr: not an override; write name=value, e.g. optim.lr=3e-4"),
        ("=3", "=3: no field name before '='; write name=value, e.g. optim.lr=3e-4"),
        ("optim..lr=3", "optim..lr=3: no field name before '='; write name=value, e.g. optim.lr=3e-4"),
        ("optim.lr=fast", "optim.lr=fast: should be a number"),
        ("optim.lr=nan", "optim.lr=nan: should be a number"),
        ("optim.lr=-1", "optim.lr=-1.0: input should be greater than 0"),
        ("batch_size=0", "batch_size=0: input should be greater than or equal to 1"),
        ("batch_size=8.5", "batch_size=8.5: should be a whole number"),
        ("batch_size=8.0", "batch_size=8.0: should be a whole number"),
        ("clip_norm=off", "clip_norm=off: should be none or a number"),
        ("optim.nesterov=maybe", "optim.nesterov=maybe: should be true or false"),
        ("optim.nesterov=y", "optim.nesterov=y: should be true or false"),
        ("precision=bf61", "precision=bf61: should be 'no', 'bf16' or 'fp16'; did you mean 'bf16'?"),
        ("optim.betas=0.9", "optim.betas=0.9: should be 2 values separated by commas"),
        (
            "trackers=tensorbord",
            "trackers=tensorbord: should be a list separated by commas, each 'tensorboard' or 'wandb'",
        ),
        ("optim.lr.x=3", "optim.lr.x: optim.lr is 0.001 and has no fields"),
        ("mix.low=0.5", "mix.low: mix is None and has no fields"),
        ("mix=0.5", "mix: is None, and would be a part; change it in the recipe file"),
        ("head.dropout=2", "head.dropout=2.0: dropout must be below 1"),
        ("head.droput=2", "head.droput: OwnHead has no field 'droput'; did you mean 'dropout'?"),
    ],
)
def test_a_mistake_gets_one_line(override: str, line: str) -> None:
    with pytest.raises(UserError) as raised:
        apply_overrides(Whole(), [override])
    assert raised.value.problems == (line,)


def test_a_part_that_is_no_dataclass_is_named() -> None:
    with pytest.raises(UserError, match=r"^other\.lr: other is <.*NotADataclass.* and is not a dataclass"):
        apply_overrides(Whole(), ["other.lr=3"])


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(UserError) as raised:
        apply_overrides(
            Whole(), ["optim.lrr=1", "optim.betas=1", "oops", "batch_size=1", "batch_size=2", "plan.7.epochs=1"]
        )
    assert [problem.split(":")[0] for problem in raised.value.problems] == [
        "oops",
        "batch_size",
        "optim.lrr",
        "optim.betas=1",
        "plan.7.epochs",
    ]
    assert "batch_size: given twice: batch_size=1 and batch_size=2" in raised.value.problems


def test_a_part_is_checked_although_another_one_has_a_problem() -> None:
    with pytest.raises(UserError) as raised:
        apply_overrides(Whole(), ["optim.lr=0", "batch_size=0", "blend.low=2", "blend.high=x"])
    assert raised.value.problems == (
        "optim.lr=0.0: input should be greater than 0",
        "blend.high=x: should be a number",
        "batch_size=0: input should be greater than or equal to 1",
    )


def test_overrides_of_one_part_are_checked_together() -> None:
    changed = apply_overrides(Whole(), ["blend.low=2", "blend.high=3"])
    assert changed.blend == Mix(low=2, high=3)
    with pytest.raises(UserError, match=r"low=2\.0 is above high=1\.0"):
        apply_overrides(Whole(), ["blend.low=2"])


def test_a_field_is_not_given_whole_and_in_pieces() -> None:
    with pytest.raises(UserError, match=r"^optim\.betas\.0: optim\.betas is given as a whole, too$"):
        apply_overrides(Whole(), ["optim.betas=1,2", "optim.betas.0=3"])
