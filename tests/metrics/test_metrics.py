"""Metrics against scikit-learn in float64, and torchmetrics, over scales, offsets, absent classes and single labels."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sk
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_f1_score,
    multilabel_f1_score,
)

import tiny
from launcher import Split, Splits, phases, tasks
from launcher.data.sources import Subset
from launcher.errors import UserError
from launcher.files import json_text, metrics_from_json
from launcher.metrics.bootstrap import _quantiles, intervals, to_json
from launcher.metrics.clopper_pearson import clopper_pearson
from launcher.recipe.protocols import TargetKind
from launcher.text import level, number
from launcher.training.preflight import prepare

SOME = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def built(task: Any, targets: Any, names: tuple[str, ...]) -> Any:
    split = Split(None, np.asarray(targets))  # type: ignore[arg-type]
    return task.build(Splits(split, split, names))


@pytest.mark.slow
@SOME
@given(
    seed=st.integers(0, 10_000),
    samples=st.integers(2, 40),
    columns=st.integers(1, 3),
    exponent=st.integers(-9, 12),
    steps=st.integers(0, 6),
    noise=st.floats(0, 2),
)
def test_regression_is_right_at_any_scale_and_offset(
    seed: int, samples: int, columns: int, exponent: int, steps: int, noise: float
) -> None:
    """Up to an offset of a million standard deviations; beyond it float64 itself has few digits left."""
    draw = np.random.default_rng(seed)
    spread = 10.0**exponent
    targets = spread * (draw.normal(size=(samples, columns)) + draw.choice([0, 10.0**steps]))
    task = built(tasks.Regression(), targets, tuple("abc"[:columns]))
    goals = (targets - targets.mean(0)) / targets.std(0)
    outputs = torch.from_numpy(goals + noise * draw.normal(size=goals.shape)).float()
    found = task.metrics(outputs, torch.from_numpy(targets))
    values = task.values(outputs).numpy()
    expected = {
        "mae": sk.mean_absolute_error(targets, values),
        "rmse": math.sqrt(sk.mean_squared_error(targets, values)),
        "r2": sk.r2_score(targets, values),
    }
    for name, value in expected.items():
        # 1e-9: by float64, of which the offset takes 6 of 16 digits. Float32 outputs are 1e-7 of a standard deviation.
        size = 1.0 if name == "r2" else spread
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-7 * size), name
    assert found["loss"] == pytest.approx(float(np.square(outputs.double().numpy() - goals).mean()), rel=1e-5, abs=1e-9)


@pytest.mark.slow
@SOME
@given(
    seed=st.integers(0, 10_000),
    samples=st.integers(1, 60),
    classes=st.integers(2, 9),
    present=st.integers(1, 9),
    scale=st.sampled_from([1e-9, 0.1, 1.0, 1e3]),
)
def test_classes_are_measured_as_by_the_oracles(
    seed: int, samples: int, classes: int, present: int, scale: float
) -> None:
    draw = np.random.default_rng(seed)
    names = tuple(f"c{i}" for i in range(classes))
    targets = draw.integers(0, min(present, classes), samples)
    outputs = scale * np.round(draw.normal(size=(samples, classes)), 1).astype(np.float32)  # with ties
    task = built(tasks.Classification(), targets, names)
    ours, theirs = torch.from_numpy(targets), torch.from_numpy(outputs).float()
    found = task.metrics(theirs, ours)
    predicted = theirs.argmax(1).numpy()
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(targets, predicted))
    assert found["accuracy"] == pytest.approx(float(multiclass_accuracy(theirs, ours, classes, average="micro")))
    occurring = sorted({*targets.tolist(), *predicted.tolist()})
    f1 = sk.f1_score(targets, predicted, labels=occurring, average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(f1)
    assert found["macro_f1"] == pytest.approx(float(multiclass_f1_score(theirs, ours, classes, average="macro")))
    probabilities = theirs.double().softmax(1).numpy()
    loss = -np.log(np.maximum(probabilities[np.arange(samples), targets], 1e-300))
    if loss.max() < 600:
        assert found["loss"] == pytest.approx(loss.mean(), rel=1e-9)
    recalls = sk.recall_score(targets, predicted, labels=range(classes), average=None, zero_division=np.nan)
    for name, recall in zip(names, recalls, strict=True):
        assert (f"recall/{name}" in found) == (not math.isnan(recall))
        if not math.isnan(recall):
            assert found[f"recall/{name}"] == pytest.approx(recall)
    assert ("auroc" in found) == (len(set(targets)) == classes)
    if "auroc" in found:
        each = [sk.roc_auc_score(targets == i, probabilities[:, i]) for i in range(classes)]
        assert found["auroc"] == pytest.approx(float(np.mean(each)))
    assert ("top5_accuracy" in found) == (classes > 5)
    assert set(task.undefined(ours)).isdisjoint(found)


@pytest.mark.slow
@SOME
@given(seed=st.integers(0, 10_000), samples=st.integers(2, 60), labels=st.integers(1, 4), share=st.floats(0, 1))
def test_labels_are_measured_as_by_the_oracles(seed: int, samples: int, labels: int, share: float) -> None:
    draw = np.random.default_rng(seed)
    targets = (draw.random((samples, labels)) < share).astype(np.float32)
    # Multiples of 1 / 8, which float32 holds: ties are ties in every library.
    outputs = (np.round(16 * draw.normal(size=(samples, labels))) / 8 - 1 / 16).astype(np.float32)
    names = tuple(f"l{i}" for i in range(labels))
    task = built(tasks.MultiLabel(), targets, names)
    ours, theirs = torch.from_numpy(targets), torch.from_numpy(outputs)
    found = task.metrics(theirs, ours)
    given_labels = outputs > 0
    truth = targets > 0
    each = [sk.f1_score(truth[:, i], given_labels[:, i], zero_division=0) for i in range(labels)]
    assert found["macro_f1"] == pytest.approx(float(np.mean(each)))
    assert found["exact_match"] == pytest.approx(float((truth == given_labels).all(1).mean()))
    if (truth | given_labels).any():
        assert found["micro_f1"] == pytest.approx(sk.f1_score(truth.ravel(), given_labels.ravel(), zero_division=0))
    both = [i for i in range(labels) if 0 < truth[:, i].sum() < samples]
    assert ("map" in found) == ("auroc" in found) == bool(both)
    if both:
        found_map = np.mean([sk.average_precision_score(truth[:, i], outputs[:, i]) for i in both])
        assert found["map"] == pytest.approx(float(found_map))
        assert found["auroc"] == pytest.approx(
            float(np.mean([sk.roc_auc_score(truth[:, i], outputs[:, i]) for i in both]))
        )
    if len(both) == labels > 1:
        probabilities = theirs.sigmoid()
        f1 = multilabel_f1_score(probabilities, ours.long(), labels, average="macro")
        assert found["macro_f1"] == pytest.approx(float(f1), abs=1e-6)


@pytest.mark.parametrize("level_", [0.95, 0.5])
def test_the_interval_of_a_share_is_the_exact_one(level_: float) -> None:
    for right, total in ((0, 1), (1, 1), (16, 16), (0, 7), (3, 7), (40, 1000), (4999, 5000)):
        expected = binomtest(right, total).proportion_ci(level_, method="exact")
        assert clopper_pearson(right, total, level_) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.slow
def test_a_perfect_score_has_an_exact_interval_or_none() -> None:
    targets = np.arange(16) % 2
    task = built(tasks.Classification(), targets, ("a", "b"))
    outputs = 5 * torch.eye(2)[torch.from_numpy(targets)]
    metrics = task.metrics(outputs, torch.from_numpy(targets))
    found = intervals(task, outputs, torch.from_numpy(targets), metrics, seed=0)
    assert (found["accuracy"].low, found["accuracy"].high) == (pytest.approx(0.794, abs=1e-3), 1.0)  # type: ignore[comparison-overlap]
    assert found["recall/a"].low == pytest.approx(0.631, abs=1e-3)
    assert metrics["auroc"] == metrics["macro_f1"] == 1.0
    written = to_json(found, metrics, 0)
    assert {"auroc", "macro_f1"} <= set(written["not_defined"])
    assert {"accuracy", "recall/a"} <= set(written["exact"])


def test_a_score_that_hardly_any_resample_changes_has_no_interval() -> None:
    """An interval of no width would say that other images give the very same."""
    draws = np.full(1000, 1 / 3)
    draws[:10] = 0.5
    assert _quantiles({"macro_f1": draws}, {"macro_f1"}) == {}


def test_values_of_seconds_keep_their_steps_and_too_large_ones_are_reported() -> None:
    seconds = 1.7e9 + 40.0 * np.arange(10)
    task = built(tasks.Regression(), seconds[:, None], ("t",))
    goals = task.normalised(torch.from_numpy(seconds[:, None]))
    assert torch.allclose(task.values(goals)[:, 0], torch.from_numpy(seconds), rtol=0, atol=1e-4)
    built(tasks.Regression(), 4e38 * np.arange(10.0)[:, None], ("t",))  # float64 holds these
    for targets, said in (
        (1e200 * np.arange(10.0), "as large as 9e\\+200, too large"),
        (1e-200 * np.arange(10.0), "differ by so little"),
        (np.full(10, 1.7e9 + 0.1), "all the same value"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserError, match=said):
                built(tasks.Regression(), targets[:, None], ("t",))


def test_what_targets_leave_undefined_is_left_out_with_its_reason() -> None:
    train = Split(None, np.array([[1.0], [2.0]]))  # type: ignore[arg-type]
    val = Split(None, np.array([[0.1], [0.1], [0.1]]))  # type: ignore[arg-type]
    task: Any = tasks.Regression().build(Splits(train, val, ("y",)))
    targets = torch.from_numpy(val.targets)
    assert set(task.metrics(torch.zeros(3, 1), targets)) == {"mae", "rmse", "loss"}
    assert task.undefined(targets) == {"r2": "all its values of 'y' are the same"}
    classes = built(tasks.Classification(), [0, 1, 2], ("a", "b", "c"))
    assert classes.undefined(torch.tensor([0, 2])) == {
        "recall/b": "it has no image of 'b'",
        "auroc": "it has no image of 'b'",
    }
    # What is not a number because the outputs are not stays, so that it is told and never the best.
    assert math.isnan(classes.metrics(torch.full((3, 3), math.nan), torch.tensor([0, 1, 2]))["auroc"])


@pytest.mark.parametrize("value", [1e-9, 0.00004, 0.0123456, 1.5, 12345.6, 1e12])
def test_no_number_is_shown_as_another(value: float) -> None:
    assert float(number(value)) == pytest.approx(value, rel=5e-3)
    assert float(level(1.7e9 + value, value)) - 1.7e9 == pytest.approx(value, rel=0.1) if value > 1e-5 else True


def test_a_monitor_that_the_validation_images_leave_undefined_is_reported_as_such() -> None:
    """Not as an unknown metric."""
    lacking = dataclasses.replace(
        tiny.recipe, data=LacksAClass(), freeze_plan=phases.linear_probe(epochs=1, monitor="auroc")
    )
    with pytest.raises(UserError) as error:
        prepare(lacking, num_processes=1, micro_batch_size=None, on_cpu=True)
    assert error.value.problems == (
        "freeze_plan.0.monitor='auroc': not defined on this validation set: it has no image of 'down'; choose another "
        "as the phases' monitor: accuracy, macro_f1, loss",
    )


def test_metrics_that_are_not_numbers_are_strict_json_and_come_back() -> None:
    metrics = {"mae": math.nan, "rmse": math.inf, "loss": 0.5}
    text = json_text(metrics)
    assert "NaN" not in text
    assert "Infinity" not in text
    back = metrics_from_json(json.loads(text))
    assert math.isnan(back["mae"])
    assert math.isnan(back["rmse"])
    assert back["loss"] == 0.5
    assert number(back["mae"]) == "nan"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LacksAClass(tiny.StripeData):
    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        splits = super().build(target_kind, seed)
        kept = np.flatnonzero(splits.val.targets != 1)
        return dataclasses.replace(splits, val=Split(Subset(splits.val.images, kept), splits.val.targets[kept]))
