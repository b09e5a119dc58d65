"""Tasks: the kind of targets, the number of outputs, the loss, and the metrics."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from launcher.recipe.part import part
from launcher.recipe.protocols import BuiltTask, Splits, TargetKind

Weights = Literal["balanced"] | tuple[float, ...] | None


@part
class Classification:
    """One class per image, with cross-entropy."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: Weights = None
    """Weight of each class in the training loss: "balanced" (inverse of its count), values in the order of the classes,
    or None. Weights are scaled to a mean of 1 over the training samples: the learning rate keeps its meaning, and the
    loss of a step is a plain mean over its batch, however the batch is split."""

    target_kind: ClassVar[TargetKind] = "class"

    def build(self, splits: Splits) -> BuiltTask:
        from launcher.recipe.built_tasks import BuiltClassification

        return BuiltClassification(splits, self.label_smoothing, self.class_weights)


@part
class MultiLabel:
    """Any number of labels per image, with binary cross-entropy averaged over the labels."""

    pos_weight: Weights = None
    """Weight of the positive samples of each label: "balanced" (negatives / positives among the training images),
    values in the order of the labels, or None."""

    target_kind: ClassVar[TargetKind] = "labels"

    def build(self, splits: Splits) -> BuiltTask:
        from launcher.recipe.built_tasks import BuiltMultiLabel

        return BuiltMultiLabel(splits, self.pos_weight)


@part
class Regression:
    """One or several numbers per image.

    The task normalises them by the mean and the standard deviation of the training targets; metrics and predictions are
    in the user's units.
    """

    target_kind: ClassVar[TargetKind] = "values"
    exact_targets: ClassVar[bool] = True

    loss: Literal["mse", "smooth_l1", "l1"] = "mse"

    def build(self, splits: Splits) -> BuiltTask:
        from launcher.recipe.built_tasks import BuiltRegression

        return BuiltRegression.of(splits, self.loss)
