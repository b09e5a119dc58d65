"""The optimizer of a phase, its learning rates and its state, and the moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from launcher.recipe.protocols import Optimizer


def parameter_groups(model: nn.Module, lr_scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return groups of trainable parameters with one lr_scale each, in the order of the model.

    Vectors and scalars (biases, norms) form groups of their own without weight decay, as in timm. Each group carries
    "lr_scale" and the "names" of its parameters, so that state is kept by name and not by position.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1
        group = groups.setdefault(
            (lr_scales[name], decays),
            {"params": [], "names": [], "lr_scale": lr_scales[name]} | ({} if decays else {"weight_decay": 0.0}),
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(part: Optimizer, model: nn.Module, lr_scales: Mapping[str, float]) -> torch.optim.Optimizer:
    """Build the optimizer of a phase, which holds exactly the trainable parameters."""
    optimizer = part.build(parameter_groups(model, lr_scales))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert held == trainable, "the optimizer must hold exactly the trainable parameters"
    return optimizer


def set_learning_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set each group's learning rate to `lr` times its lr_scale.

    The groups are read anew each time, because wrapping an optimizer replaces their dicts.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Return a copy of the optimizer's state by parameter name, on the CPU."""
    state: dict[str, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            entries = optimizer.state.get(parameter, {})
            state[name] = {
                key: value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
                for key, value in entries.items()
            }
    return state


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Restore a state from `optimizer_state`; learning rates and weight decay stay those of the recipe."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            entries = dict(state[name])
            for key, value in entries.items():
                # torch keeps Adam's "step" on the CPU unless the optimizer is capturable or fused.
                if isinstance(value, torch.Tensor) and key != "step":
                    entries[key] = value.to(parameter.device, copy=True)
                elif isinstance(value, torch.Tensor):
                    entries[key] = value.clone()
            if entries:
                optimizer.state[parameter] = entries


class WeightAverage:
    """An exponential moving average of the tensors that a phase changes, starting from the phase's first weights.

    The decay at step t is min(decay, (1 + t) / (10 + t)), as in TensorFlow's ExponentialMovingAverage with num_updates;
    otherwise a short phase would average over its random start.
    """

    def __init__(self, model: nn.Module, names: set[str], decay: float) -> None:
        self.decay = decay
        self._live = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name in names}
        self.values = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the weights after optimizer step `step` (0-based) of the phase."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, live in self._live.items():
            if live.is_floating_point():
                self.values[name].lerp_(live.detach(), 1 - decay)
            else:
                self.values[name].copy_(live)

    @torch.no_grad()
    def restart(self) -> None:
        """Restart the average from the current weights."""
        for name, live in self._live.items():
            self.values[name].copy_(live)

    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        """Restore the average from a checkpoint's values."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Make the model hold the averaged weights within this context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, live in self._live.items():
            kept = live.detach().clone()
            live.copy_(self.values[name])
            self.values[name].copy_(kept)
