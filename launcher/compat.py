"""Private names of other libraries that launcher cannot do without, each with the version that it was seen in.

Nothing is imported before it is needed: some commands run without torch, others without optuna.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    import torch
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.utils.data import DataLoader


def is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Return whether a module is a BatchNorm of any dimension, or SyncBatchNorm (torch 2.14)."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return isinstance(module, _BatchNorm)


def has_forward_hooks(module: nn.Module) -> bool:
    """Return whether a module calls hooks before or after its forward (torch 2.14)."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_assertion(target: object) -> bool:
    """Return whether a node of a graph calls `torch._assert`, which checks and computes nothing (torch 2.14)."""
    import torch

    return target is torch._assert


def divide_all(tensors: Sequence[torch.Tensor], divisor: float) -> None:
    """Divide tensors in place, in a handful of kernels and not one for each (torch 2.14)."""
    import torch

    torch._foreach_div_(list(tensors), divisor)


def versioned_state(
    tensors: Mapping[str, torch.Tensor], versions: Mapping[str, Mapping[str, Any]]
) -> OrderedDict[str, torch.Tensor]:
    """Return a state dict that says the versions of its modules' layouts, by module name (torch 2.14).

    Files do not hold these versions, and torchvision's MNASNet refuses a state dict without its own.
    """
    state = OrderedDict(tensors)
    state._metadata = versions  # type: ignore[attr-defined]
    return state


def layout_versions(model: nn.Module) -> Mapping[str, Mapping[str, Any]]:
    """Return the versions of a network's layouts, by module name (torch 2.14)."""
    versions: Mapping[str, Mapping[str, Any]] = model.state_dict()._metadata  # type: ignore[attr-defined]
    return versions


def end_workers(loader: DataLoader[Any]) -> None:
    """End a loader's worker processes (torch 2.14). This must be called however a run ends.

    The workers ignore SIGTERM, which is all that Python sends them at its own exit, and Python would then wait for them
    forever: a traceback keeps the iterator alive that would end them.
    """
    iterator: Any = loader._iterator
    if iterator is not None:
        iterator._shutdown_workers()
        loader._iterator = None


def forget_accelerate(*, process_group: bool) -> None:
    """Reset what Accelerate keeps for a process, its precision above all (accelerate 1.15).

    Args:
        process_group: Forget the process group as well; without it, a new Accelerator finds the group still up.
    """
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=process_group)
    if process_group:
        GradientState._reset_state()


def report_value(study: Study, trial: FrozenTrial, step: int, value: float) -> None:
    """Report an intermediate value of a trial that another process has drawn (optuna 5.0)."""
    study._storage.set_trial_intermediate_value(trial._trial_id, step, value)


def set_attribute(study: Study, trial: FrozenTrial, name: str, value: Any) -> None:
    """Set an attribute of a trial that another process has drawn (optuna 5.0)."""
    study._storage.set_trial_user_attr(trial._trial_id, name, value)


def live_trial(study: Study, trial: FrozenTrial) -> Trial:
    """Return a trial that another process has begun as one that values can be drawn for (optuna 5.0)."""
    import optuna

    return optuna.trial.Trial(study, trial._trial_id)


def click_error() -> type[Exception]:
    """Return the base of all usage errors (typer 0.29): BadParameter -> UsageError -> ClickException.

    Some versions of typer carry click inside them, and others use the installed one.
    """
    import typer

    return typer.BadParameter.__mro__[2]
