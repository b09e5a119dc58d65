"""Private names of other libraries do what `launcher.compat` says of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
import torchvision
import typer
from torch import fx, nn
from torch.utils.data import DataLoader

from commands import ROOT
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


def test_a_state_without_versions_is_refused_by_a_network_that_needs_them() -> None:
    network = torchvision.models.mnasnet0_5(num_classes=2)
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match="version"):
        network.load_state_dict(tensors)
    network.load_state_dict(compat.versioned_state(tensors, compat.layout_versions(network)))


DOCUMENTED = {"_exit", "_current_frames"}
"""Names of Python's own modules that begin with an underscore and are documented."""


def test_no_other_module_uses_private_names_of_other_libraries() -> None:
    defined, used = set(DOCUMENTED), []
    for path in sorted((ROOT / "launcher").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                defined.add(node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [name for target in targets for name in ast.walk(target)]
                defined |= {name.id for name in names if isinstance(name, ast.Name)}
                defined |= {
                    name.attr for name in names if isinstance(name, ast.Attribute) and ast.unparse(name.value) == "self"
                }
            elif path.name != "compat.py" and isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
                used.append((node.attr, f"{path.relative_to(ROOT)}:{node.lineno}"))
            elif path.name != "compat.py" and isinstance(node, ast.ImportFrom):
                used += [
                    (name.name, f"{path.relative_to(ROOT)}:{node.lineno}") for name in node.names if name.name[0] == "_"
                ]
    assert len(used) > 500
    assert [(name, place) for name, place in used if name not in defined] == []


def test_division_of_many() -> None:
    tensors = [torch.full((2,), 6.0), torch.full((1, 3), 9.0)]
    compat.divide_all(tensors, 3)
    assert [tensor.unique().tolist() for tensor in tensors] == [[2.0], [3.0]]


@pytest.mark.slow
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


@pytest.mark.slow
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
