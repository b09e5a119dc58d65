"""Proof that what is frozen stands still, and that all processes hold the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from launcher.errors import UserError


def fingerprint(tensor: torch.Tensor) -> str:
    """A hash of a tensor's bytes."""
    data = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(data.numpy().tobytes(), digest_size=16).hexdigest()


def fingerprints(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, str]:
    """Hashes of the named parameters and buffers; of all by default."""
    state = model.state_dict()
    return {name: fingerprint(state[name]) for name in (state if names is None else names)}


def check_frozen(model: nn.Module, before: Mapping[str, str], phase: str) -> None:
    """Raises UserError naming the tensors that are no longer what they were when the phase began."""
    now = fingerprints(model, before)
    moved = [name for name, digest in before.items() if now[name] != digest]
    if moved:
        raise UserError(
            f"phase {phase}: {len(moved)} frozen tensors changed: {', '.join(moved[:5])}"
            f"{', ...' if len(moved) > 5 else ''}; something wrote to them (a hook, a shared tensor, a module put in "
            "training mode by hand); the run was stopped"
        )
