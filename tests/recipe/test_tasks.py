from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from launcher.errors import UserError
from launcher.recipe.protocols import Split, Splits, Task
from launcher.recipe.tasks import Classification, MultiLabel, Regression


class NoImages:
    def __len__(self) -> int:
        return 0


def splits(targets: list[Any], names: str) -> Splits:
    array = np.array(targets, dtype=np.int64 if np.ndim(targets) == 1 else np.float32)
    split = Split(NoImages(), array)  # type: ignore[arg-type]
    return Splits(train=split, val=split, names=tuple(names))


def test_classification_loss_is_cross_entropy_and_mixed_targets_agree_with_plain_ones() -> None:
    task = Classification(label_smoothing=0.1).build(splits([0, 1, 2, 0], "abc"))
    outputs, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    plain = task.loss(outputs, targets)
    assert plain.shape == (4,)
    assert torch.allclose(plain.mean(), F.cross_entropy(outputs, targets, label_smoothing=0.1))
    assert torch.allclose(task.loss(outputs, task.encode(targets)), plain, atol=1e-6)


def test_validation_loss_knows_no_smoothing_and_no_weights() -> None:
    outputs, targets = torch.randn(4, 2), torch.tensor([0, 1, 1, 1])
    for task in (Classification(label_smoothing=0.2), Classification(class_weights=(1.0, 5.0))):
        metrics = task.build(splits([0, 1, 1, 1], "ab")).metrics(outputs, targets)
        assert metrics["loss"] == pytest.approx(F.cross_entropy(outputs, targets).item(), rel=1e-5)


def test_class_weights_are_scaled_to_mean_one_over_the_training_samples() -> None:
    for wanted in ("balanced", (3.0, 1.0)):
        task = Classification(class_weights=wanted).build(splits([0, 1, 1, 1], "ab"))
        assert task.weights[torch.tensor([0, 1, 1, 1])].mean() == pytest.approx(1.0)  # type: ignore[attr-defined]
        assert task.weights[0] / task.weights[1] == pytest.approx(3.0)  # type: ignore[attr-defined]


def test_classification_metrics_against_counting() -> None:
    task = Classification().build(splits([0, 1, 2], "abc"))
    outputs = torch.tensor([[3.0, 1, 0], [0, 2, 1], [1, 3, 0], [0, 0, 1]])
    metrics = task.metrics(outputs, torch.tensor([0, 1, 2, 2]))
    assert metrics["accuracy"] == 0.75
    assert (metrics["recall/a"], metrics["recall/b"], metrics["recall/c"]) == (1.0, 1.0, 0.5)
    assert metrics["macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert "top5_accuracy" not in metrics


def test_auroc_is_left_out_while_a_class_has_no_sample() -> None:
    task = Classification().build(splits([0, 1, 2], "abc"))
    assert "auroc" in task.metrics(torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert "auroc" not in task.metrics(torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0]))


def test_multilabel_ranks_only_labels_that_can_be_ranked() -> None:
    task = MultiLabel(pos_weight="balanced").build(splits([[1, 0, 1], [0, 1, 1], [1, 0, 1], [0, 1, 1]], "abc"))
    assert task.pos_weight.tolist() == [1.0, 1.0, 0.0]  # type: ignore[attr-defined]
    outputs = torch.tensor([[2.0, -1, 3], [-2, 1, 3], [2, -1, 3], [-2, 1, 3]])
    metrics = task.metrics(outputs, torch.tensor([[1.0, 0, 1], [0, 1, 1], [1, 0, 1], [0, 1, 1]]))
    assert metrics["map"] == metrics["auroc"] == metrics["exact_match"] == 1.0


def test_regression_reports_in_the_users_units() -> None:
    task = Regression().build(splits([[10.0, 100], [20, 300]], "ab"))
    targets = torch.tensor([[10.0, 100], [20, 300]])
    perfect = (targets - task.mean) / task.std  # type: ignore[attr-defined]
    assert task.metrics(perfect, targets)["mae"] == pytest.approx(0, abs=1e-5)
    off = task.metrics(perfect + 1, targets)
    assert off["mae/a"] == pytest.approx(5)
    assert off["mae/b"] == pytest.approx(100)
    assert task.loss(perfect + 1, targets).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("task", "targets", "names", "said"),
    [
        (Classification(), [0, 0], "a", "at least two classes"),
        (Classification(class_weights=(1.0,)), [0, 1], "ab", "1 value for 2 names: a, b"),
        (Classification(class_weights=(0.0, 0.0)), [0, 1], "ab", "one above 0"),
        (MultiLabel(pos_weight="balanced"), [[1, 0], [1, 0]], "ab", "no training image has the labels"),
        (Regression(), [[3.0, 1], [3, 2]], "ab", "all the same value"),
    ],
)
def test_targets_that_cannot_be_learned(task: Task, targets: list[Any], names: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        task.build(splits(targets, names))
