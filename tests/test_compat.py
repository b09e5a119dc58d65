"""Private names of other libraries do what `launcher.compat` says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer
from torch import fx, nn
from torch.utils.data import DataLoader

from launcher import compat


def test_batch_norm() -> None:
    norms = [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.SyncBatchNorm(2)]
    assert all(map(compat.is_batch_norm, norms))
    assert not any(map(compat.is_batch_norm, [nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.Identity()]))


def test_hooks() -> None:
    before, after, none = nn.Identity(), nn.Identity(), nn.Identity()
    before.register_forward_pre_hook(lambda *_: None)
    after.register_forward_hook(lambda *_: None)
    assert list(map(compat.has_forward_hooks, [before, after, none])) == [True, True, False]


class Asserts(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._assert(x.ndim == 2, "two dimensions")
        return x + 1


def test_assertions_of_a_graph() -> None:
    called = [node.target for node in fx.symbolic_trace(Asserts()).graph.nodes if node.op == "call_function"]
    assert sum(map(compat.is_assertion, called)) == 1


def test_division_of_many() -> None:
    tensors = [torch.full((2,), 6.0), torch.full((1, 3), 9.0)]
    compat.divide_all(tensors, 3)
    assert [tensor.unique().tolist() for tensor in tensors] == [[2.0], [3.0]]


def test_workers_end() -> None:
    loader = DataLoader([1, 2, 3], num_workers=1, persistent_workers=True)  # type: ignore[arg-type, var-annotated]
    assert len(list(loader)) == 3
    (worker,) = loader._iterator._workers
    compat.end_workers(loader)
    assert not worker.is_alive()
    assert loader._iterator is None
    compat.end_workers(loader)


def test_accelerate_takes_another_precision() -> None:
    from accelerate import Accelerator

    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"
    compat.forget_accelerate(process_group=False)
    assert Accelerator(cpu=True, mixed_precision="no").mixed_precision == "no"
    compat.forget_accelerate(process_group=True)


def test_trials_of_other_processes(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}")
    number = study.ask().number
    trial = study.get_trials(deepcopy=False)[number]
    compat.report_value(study, trial, 3, 0.5)
    compat.set_attribute(study, trial, "cause", "none")
    assert 0 <= compat.live_trial(study, trial).suggest_float("lr", 0, 1) <= 1
    trial = study.get_trials(deepcopy=False)[number]
    assert trial.intermediate_values == {3: 0.5}
    assert trial.user_attrs == {"cause": "none"}
    assert "lr" in trial.params


def test_usage_errors() -> None:
    base = compat.click_error()
    assert issubclass(typer.BadParameter, base)
    assert base.__name__ == "ClickException"
