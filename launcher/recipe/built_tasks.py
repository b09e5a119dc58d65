"""The tasks at work: losses per sample, metrics over all samples (torchmetrics)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from launcher.errors import UserError
from launcher.recipe import scores, tasks
from launcher.recipe.protocols import Splits

Mode = Literal["max", "min"]


class BuiltClassification:
    """Outputs are logits (N, num_classes); targets int64 (N,), or float (N, num_classes) when mixed."""

    monitor = "accuracy"
    monitor_mode: Mode = "max"

    def __init__(self, task: tasks.Classification, splits: Splits) -> None:
        self.names = splits.names
        self.num_outputs = len(splits.names)
        self.label_smoothing = task.label_smoothing
        self.weights: torch.Tensor | None = None
        if self.num_outputs < 2:
            raise UserError(f"task: classification needs at least two classes, the data has {list(splits.names)}")
        if task.class_weights is not None:
            self.weights = _class_weights(task.class_weights, splits)

    def encode(self, targets: torch.Tensor) -> torch.Tensor:
        return F.one_hot(targets, self.num_outputs).float()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weights = None if self.weights is None else self.weights.to(outputs.device)
        return F.cross_entropy(
            outputs.float(), targets, weight=weights, reduction="none", label_smoothing=self.label_smoothing
        )

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        outputs, num_classes = outputs.float(), self.num_outputs
        found = {
            "accuracy": scores.multiclass_accuracy(outputs, targets, num_classes, average="micro"),
            "macro_f1": scores.multiclass_f1_score(outputs, targets, num_classes, average="macro"),
            "loss": F.cross_entropy(outputs, targets),
        }
        if num_classes > 5:
            found["top5_accuracy"] = scores.multiclass_accuracy(outputs, targets, num_classes, average="micro", top_k=5)
        if len(torch.unique(targets)) == num_classes:  # undefined while a class has no sample
            found["auroc"] = scores.multiclass_auroc(outputs, targets, num_classes, average="macro")
        recalls = scores.multiclass_recall(outputs, targets, num_classes, average="none")
        found |= {f"recall/{name}": recall for name, recall in zip(self.names, recalls, strict=True)}
        return {name: float(value) for name, value in found.items()}

    def describe(self) -> dict[str, Any]:
        return {"kind": "classification", "outputs": "logits; softmax gives probabilities"}


class BuiltMultiLabel:
    """Outputs are logits (N, num_labels); targets float32 (N, num_labels) in [0, 1]."""

    monitor = "map"
    monitor_mode: Mode = "max"

    def __init__(self, task: tasks.MultiLabel, splits: Splits) -> None:
        self.names = splits.names
        self.num_outputs = len(splits.names)
        positives = splits.train.targets.sum(axis=0)
        self.pos_weight: torch.Tensor | None = None
        if task.pos_weight == "balanced":
            absent = [name for name, count in zip(splits.names, positives, strict=True) if count == 0]
            if absent:
                raise UserError(f"task.pos_weight='balanced': no training image has the labels {absent}; give values")
            self.pos_weight = torch.tensor((len(splits.train) - positives) / positives, dtype=torch.float32)
        elif task.pos_weight is not None:
            self.pos_weight = torch.tensor(_one_for_each("task.pos_weight", task.pos_weight, splits))

    def encode(self, targets: torch.Tensor) -> torch.Tensor:
        return targets

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weight = None if self.pos_weight is None else self.pos_weight.to(outputs.device)
        losses = F.binary_cross_entropy_with_logits(outputs.float(), targets, pos_weight=weight, reduction="none")
        return losses.mean(dim=1)

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        outputs, truth, num_labels = outputs.float(), targets.long(), self.num_outputs
        # A label without a positive has no average precision, one without a negative no AUROC: left out of the mean.
        both = [i for i in range(num_labels) if 0 < int(truth[:, i].sum()) < len(truth)]
        ranked = outputs[:, both].sigmoid(), truth[:, both], len(both)
        found = {
            "macro_f1": scores.multilabel_f1_score(outputs, truth, num_labels, average="macro"),
            "micro_f1": scores.multilabel_f1_score(outputs, truth, num_labels, average="micro"),
            "exact_match": scores.multilabel_exact_match(outputs, truth, num_labels),
            "loss": F.binary_cross_entropy_with_logits(outputs, targets.float()),
        }
        if len(both) == 1:
            found["map"] = scores.binary_average_precision(ranked[0][:, 0], ranked[1][:, 0])
            found["auroc"] = scores.binary_auroc(ranked[0][:, 0], ranked[1][:, 0])
        elif both:
            found["map"] = scores.multilabel_average_precision(*ranked, average="macro")
            found["auroc"] = scores.multilabel_auroc(*ranked, average="macro")
        else:
            found["map"] = torch.tensor(0.0)
        recalls = scores.multilabel_recall(outputs, truth, num_labels, average="none")
        recalls = recalls.reshape(-1)
        found |= {f"recall/{name}": recall for name, recall in zip(self.names, recalls, strict=True)}
        return {name: float(value) for name, value in found.items()}

    def describe(self) -> dict[str, Any]:
        return {"kind": "multi-label", "outputs": "logits; sigmoid gives the probability of each label"}


class BuiltRegression:
    """Outputs are normalised values (N, num_targets); targets float32 (N, num_targets) in the user's units."""

    monitor = "mae"
    monitor_mode: Mode = "min"

    def __init__(self, task: tasks.Regression, splits: Splits) -> None:
        self.names = splits.names
        self.num_outputs = len(splits.names)
        self.loss_name = task.loss
        train = splits.train.targets.astype(np.float64)
        self.mean = torch.tensor(train.mean(axis=0), dtype=torch.float32)
        self.std = torch.tensor(train.std(axis=0), dtype=torch.float32)
        flat = [name for name, std in zip(splits.names, train.std(axis=0), strict=True) if not std > 0]
        if flat:
            raise UserError(f"task: the training targets {flat} are all the same value; there is nothing to learn")

    def encode(self, targets: torch.Tensor) -> torch.Tensor:
        return targets

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        goal = (targets - self.mean.to(targets.device)) / self.std.to(targets.device)
        losses = {"mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss}
        return losses[self.loss_name](outputs.float(), goal, reduction="none").mean(dim=1)

    def values(self, outputs: torch.Tensor) -> torch.Tensor:
        """Outputs in the user's units, (N, num_targets)."""
        return outputs.float() * self.std.to(outputs.device) + self.mean.to(outputs.device)

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        values = self.values(outputs)
        found = {
            "mae": scores.mean_absolute_error(values, targets),
            "rmse": scores.mean_squared_error(values, targets).sqrt(),
            "loss": self.loss(outputs, targets).mean(),
        }
        if len(targets) > 1:
            found["r2"] = scores.r2_score(values, targets)
        if self.num_outputs > 1:
            for i, name in enumerate(self.names):
                found[f"mae/{name}"] = scores.mean_absolute_error(values[:, i], targets[:, i])
        return {name: float(value) for name, value in found.items()}

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "regression",
            "outputs": "normalised values; value = output * std + mean",
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }


def _one_for_each(field: str, values: tuple[float, ...], splits: Splits) -> tuple[float, ...]:
    if len(values) != len(splits.names):
        raise UserError(f"{field}: {len(values)} values for {len(splits.names)} names: {', '.join(splits.names)}")
    if min(values) < 0 or max(values) <= 0:
        raise UserError(f"{field}={values}: values must be at least 0, and one above 0")
    return values


def _class_weights(wanted: Literal["balanced"] | tuple[float, ...], splits: Splits) -> torch.Tensor:
    counts = np.bincount(splits.train.targets, minlength=len(splits.names)).astype(np.float64)
    if wanted == "balanced":
        weights = 1 / np.maximum(counts, 1)
    else:
        weights = np.array(_one_for_each("task.class_weights", wanted, splits), dtype=np.float64)
    mean = (weights * counts).sum() / counts.sum()
    return torch.tensor(weights / mean, dtype=torch.float32)
