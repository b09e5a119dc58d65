"""What is computed from outputs: intervals, calibration, thresholds, classes, residuals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from torchmetrics.classification import MulticlassCalibrationError

from launcher import Split, Splits, tasks
from launcher.inference.evaluation_details import calibration_to_store, details_of
from launcher.metrics.bootstrap import draws, intervals
from launcher.metrics.calibration import best_threshold, calibration, temperature_of
from launcher.metrics.task_formulas import formulas_of
from launcher.recipe.protocols import BuiltTask


def drawn(kind: str, samples: int, outputs: int = 7, seed: int = 0) -> tuple[BuiltTask, torch.Tensor, torch.Tensor]:
    """A built task, with outputs that know something of the targets; some of the outputs are the same."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, outputs, generator=generator).mul(4).round().div(4)
    task: Any
    if kind == "classification":
        targets = torch.randint(outputs, (samples,), generator=generator)
        noise[torch.arange(samples), targets] += 1.0
        task = tasks.Classification()
    elif kind == "multi-label":
        targets = (torch.rand(samples, outputs, generator=generator) < 0.3).float()
        noise += 1.5 * targets - 1
        task = tasks.MultiLabel()
    else:
        targets = torch.randn(samples, outputs, generator=generator) * 3 + 5
        task = tasks.Regression()
    split = Split(None, targets.numpy())  # type: ignore[arg-type]
    built = task.build(Splits(split, split, tuple(f"name {i}" for i in range(outputs))))
    if kind == "regression":
        noise = (targets - built.mean) / built.std + noise / 2
    return built, noise, targets


KINDS = pytest.mark.parametrize("kind", ["classification", "multi-label", "regression"])


@KINDS
def test_formulas_are_the_metrics_of_the_task(kind: str) -> None:
    task, outputs, targets = drawn(kind, 300)
    formulas = formulas_of(task, outputs, targets)
    weights = torch.cat([torch.ones(1, 300, dtype=torch.float64), *draws(300, 5, 0, 2)])
    found = {name: values for formula in formulas for name, values in formula.of(weights).items()}
    for row, counts in enumerate(weights):
        samples = torch.repeat_interleave(torch.arange(300), counts.long())
        expected = task.metrics(outputs[samples], targets[samples])
        assert set(expected) <= set(found)
        for name, value in expected.items():
            assert float(found[name][row]) == pytest.approx(value, abs=2e-5, rel=2e-5), name


@pytest.mark.slow
@KINDS
def test_intervals_hold_the_metric_and_shrink_with_more_samples(kind: str) -> None:
    widths = {}
    for samples in (100, 1600):
        task, outputs, targets = drawn(kind, samples)
        metrics = task.metrics(outputs, targets)
        found = intervals(task, outputs, targets, metrics, seed=3)
        assert found == intervals(task, outputs, targets, metrics, seed=3)
        assert found["loss"] != intervals(task, outputs, targets, metrics, seed=4)["loss"]
        assert list(found) == list(metrics)
        for name, interval in found.items():
            assert interval.low <= metrics[name] <= interval.high, name
            exact = name in ("accuracy", "top5_accuracy", "exact_match") or name.startswith("recall/")
            assert interval.resamples == (0 if exact else 1000)
        widths[samples] = {name: interval.high - interval.low for name, interval in found.items()}
    for name, width in widths[1600].items():
        assert 2.5 < widths[100][name] / width < 6.5, name  # 4 times, give or take: it goes with the square root


@pytest.mark.slow
def test_the_interval_of_an_accuracy_is_that_of_a_share() -> None:
    task, outputs, targets = drawn("classification", 2000)
    metrics = task.metrics(outputs, targets)
    found = intervals(task, outputs, targets, metrics, seed=0)["accuracy"]
    spread = 1.96 * math.sqrt(metrics["accuracy"] * (1 - metrics["accuracy"]) / 2000)
    assert found.low == pytest.approx(metrics["accuracy"] - spread, abs=0.003)
    assert found.high == pytest.approx(metrics["accuracy"] + spread, abs=0.003)


@pytest.mark.slow
def test_metrics_that_are_not_the_known_ones_are_asked_of_the_task() -> None:
    task: Any
    task, outputs, targets = drawn("classification", 100)
    own = task.metrics

    def metrics(outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        found: dict[str, float] = own(outputs, targets)
        return {"accuracy": 100 * found["accuracy"], "loss": found["loss"], "twice": 2 * found["loss"]}

    task.metrics = metrics
    reported = metrics(outputs, targets)
    found = intervals(task, outputs, targets, reported, seed=0)
    assert {name: interval.resamples for name, interval in found.items()} == {
        "accuracy": 100,
        "loss": 1000,
        "twice": 100,
    }
    for name, interval in found.items():
        assert interval.low <= reported[name] <= interval.high
    assert found["twice"].low == pytest.approx(2 * found["loss"].low, rel=0.05)


@pytest.mark.slow
def test_a_sample_that_is_alone() -> None:
    task, outputs, targets = drawn("classification", 1)
    metrics = task.metrics(outputs, targets)
    found = intervals(task, outputs, targets, metrics, seed=0)
    # One sample says nothing of others but for what a count of one says.
    assert "loss" not in found
    assert found["accuracy"].low in (0, pytest.approx(0.025))


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0, 200.0])
def test_the_calibration_error_is_that_of_torchmetrics(scale: float) -> None:
    _, logits, targets = drawn("classification", 500)
    logits = logits * scale
    found = calibration(logits, targets)
    expected = MulticlassCalibrationError(7, n_bins=15, norm="l1")(logits, targets)
    assert found["ece"] == pytest.approx(float(expected), abs=1e-5)
    assert found["nll"] == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-5)
    assert sum(bin["samples"] for bin in found["bins"]) == 500
    for bin in found["bins"]:
        assert bin["from"] - 1e-6 <= bin["confidence"] <= bin["to"] + 1e-6


def test_the_temperature_is_the_best_one() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(4000, 5, generator=generator) * 2
    targets = torch.multinomial(true.softmax(1), 1, generator=generator)[:, 0]
    assert temperature_of(true, targets).value == pytest.approx(1, abs=0.05)
    best = temperature_of(3 * true, targets).value
    assert best == pytest.approx(3, abs=0.15)
    at_best = calibration(3 * true, targets, best)
    for other in (1.0, best * 0.98, best * 1.02):
        assert at_best["nll"] < calibration(3 * true, targets, other)["nll"]
    assert at_best["ece"] < calibration(3 * true, targets)["ece"] / 4


def test_no_temperature_is_fitted_where_the_samples_cannot_carry_one() -> None:
    targets = torch.arange(12) % 3
    right = torch.eye(3)[targets]
    one_mistake = right.clone()
    one_mistake[0] = one_mistake[0].flip(0)
    for logits, said in (
        (right, "none of the 12 images is a mistake"),
        (50 * right, "none of the 12 images is a mistake"),
        (-right, "say too little"),
        (torch.zeros(12, 3), "say too little"),
    ):
        found = temperature_of(logits, targets)
        assert found.value == 1.0
        assert said in found.reason
    assert "9 images are too few" in temperature_of(one_mistake[:9], targets[:9]).reason
    assert temperature_of(one_mistake, targets).reason == ""


@pytest.mark.parametrize("samples", [20, 200, 2000])
def test_how_sure_a_temperature_makes_is_bound_by_the_number_of_samples(samples: int) -> None:
    """All that is wrong is one sample, almost a tie: without the bound the others would be as sure as can be."""
    targets = torch.arange(samples) % 2
    logits = 0.5 * torch.eye(2)[targets]
    logits[0] = torch.tensor([0.0, 1e-6])
    found = temperature_of(logits, targets)
    assert not found.reason
    confidence = (logits / found.value).softmax(1).max(1).values.max()
    assert 1 - 3 / samples < confidence <= (samples + 1) / (samples + 2) + 1e-6


@pytest.mark.slow
def test_the_best_threshold_is_that_of_a_search() -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    for samples in (1, 2, 5, 60):
        for _ in range(20):
            positive = generator.random(samples) < 0.4
            probabilities = np.clip(0.3 * positive + generator.random(samples).round(1) * 0.7, 0.01, 0.99)
            found = best_threshold(probabilities, positive)
            f1 = {at: f1_score(positive, probabilities >= at, zero_division=0.0) for at in [0.5, *probabilities, found]}
            assert f1[found] == max(f1.values())
            assert found == 0.5 or f1[0.5] < f1[found]


def test_classes_are_counted_as_by_scikit_learn() -> None:
    task, outputs, targets = drawn("classification", 200)
    outputs[:, 6] = -9.0  # never given
    names = [f"name {i}" for i in range(7)]
    found = details_of(task, outputs, targets, names, str, None)
    predicted = outputs.argmax(1)
    assert found["confusion"]["matrix"] == confusion_matrix(targets, predicted).tolist()
    expected = zip(*precision_recall_fscore_support(targets, predicted, zero_division=np.nan), strict=True)
    for name, scores in zip(names, expected, strict=True):
        reported = [np.nan if value is None else value for value in found["classes"][name].values()]
        assert reported == pytest.approx(scores, nan_ok=True)
    assert found["classes"]["name 6"]["precision"] is None


def test_many_classes_are_reported_in_pairs() -> None:
    task, outputs, targets = drawn("classification", 400, outputs=150)
    found = details_of(task, outputs, targets, list(map(str, range(150))), str, None)
    pairs = found["confusion"]["mistaken"]
    assert sum(pair["samples"] for pair in pairs) == int((outputs.argmax(1) != targets).sum())
    assert pairs[0]["samples"] == max(pair["samples"] for pair in pairs)


def test_labels_have_thresholds_and_scores() -> None:
    task, outputs, targets = drawn("multi-label", 300)
    names = [f"name {i}" for i in range(7)]
    found = details_of(task, outputs, targets, names, str, None)["labels"]
    for i, name in enumerate(names):
        probabilities, truth = outputs[:, i].double().sigmoid().numpy(), targets[:, i].numpy() > 0.5
        for given, key in (
            (probabilities > 0.5, "at_0.5"),
            (probabilities >= found[name]["threshold"], "at_threshold"),
        ):
            expected = precision_recall_fscore_support(truth, given, average="binary", zero_division=0.0)
            assert list(found[name][key].values())[:3] == pytest.approx(expected[:3])
        assert found[name]["at_threshold"]["f1"] >= found[name]["at_0.5"]["f1"]
        assert found[name]["support"] == truth.sum()
    stored = calibration_to_store({"labels": found})
    assert stored is not None
    again = details_of(task, outputs, targets, names, str, stored)["labels"]
    assert again == found
    assert details_of(task, outputs, targets, names, str, {})["labels"]["name 0"]["threshold"] == 0.5


def test_the_largest_residuals_are_named() -> None:
    task, outputs, targets = drawn("regression", 50, outputs=2)
    outputs[17, 1] += 100
    found = details_of(task, outputs, targets, ["a", "b"], "image {}".format, None)["residuals"]
    errors = (task.values(outputs) - targets)[:, 1].double().numpy()  # type: ignore[attr-defined]
    assert found["b"]["largest"][0] == {"index": 17, "name": "image 17", "residual": pytest.approx(errors[17])}
    assert len(found["b"]["largest"]) == 10
    assert found["b"]["mean"] == pytest.approx(errors.mean(), rel=1e-5)
    assert found["b"]["standard_deviation"] == pytest.approx(errors.std(), rel=1e-5)
    assert found["b"]["quantiles"]["0.5"] == pytest.approx(np.median(errors), rel=1e-4, abs=1e-5)
