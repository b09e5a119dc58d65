"""Proof that frozen tensors do not change and that all processes hold the same weights."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import nn

from launcher.errors import UserError
from launcher.text import listed, plural

if TYPE_CHECKING:
    from accelerate import Accelerator

NAMED = 5
"""Number of tensors that an error names; the rest are counted."""


@dataclasses.dataclass(frozen=True)
class Proof:
    """The frozen tensors at one moment; if the digest is the same as before, none of them has changed."""

    tensors: int
    """Number of frozen tensors (parameters and buffers)."""
    digest: str
    """A digest of all their hashes."""


def proof_of(frozen: Mapping[str, str]) -> Proof:
    """Return the proof for `frozen`, the hashes by name of the tensors that must not change."""
    text = "".join(f"{name}\0{frozen[name]}\0" for name in sorted(frozen))
    return Proof(len(frozen), hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest())


def fingerprint(tensor: torch.Tensor) -> str:
    """Return a hash of a tensor's bytes that does not depend on its layout in memory."""
    data = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(data.numpy().data, digest_size=16).hexdigest()


def fingerprints(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, str]:
    """Return hashes of the named parameters and buffers, or of all by default."""
    state = model.state_dict()
    names = list(state if names is None else names)
    # hashlib releases Python's global lock, so the threads of this process, which only waits meanwhile, share the work.
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        return dict(zip(names, pool.map(fingerprint, [state[name] for name in names]), strict=True))


def prove(
    accelerator: Accelerator, model: nn.Module, frozen: Mapping[str, str], phase: str, outside: Mapping[str, str]
) -> Proof:
    """Check that frozen tensors are as when the phase began and that all tensors are the same on all processes.

    `frozen` holds the hashes from the beginning of the phase, `outside` the current hashes of tensors that are not
    in `model`. Return the proof for the frozen tensors. All processes must call this, and all raise the same UserError,
    which names the tensors and the processes.
    """
    from accelerate.utils import gather_object

    now = fingerprints(model) | dict(outside)
    moved = [name for name in now if name in frozen and now[name] != frozen[name]]
    digest = hashlib.blake2b("".join(now.values()).encode(), digest_size=16).hexdigest()
    reports: list[tuple[str, list[str]]] = gather_object([(digest, moved)])
    problems = []
    for process, (_, names) in enumerate(reports):
        if names:
            problems.append(
                f"phase {phase}: {_tensors(len(names), 'frozen ')} changed on process {process}: {listed(names, NAMED)}"
                "; something wrote to them (a hook, a shared tensor, a module put in training mode by hand)"
            )
    if len({digest for digest, _ in reports}) > 1:
        everyones: list[dict[str, str]] = gather_object([now])
        for process, theirs in enumerate(everyones):
            names = [name for name in now if theirs[name] != everyones[0][name]]
            if names:
                problems.append(
                    f"phase {phase}: processes 0 and {process} hold different values in {_tensors(len(names))}: "
                    f"{listed(names, NAMED)}"
                )
    if problems:
        raise UserError(*problems)
    return proof_of({name: now[name] for name in frozen if name in now})


def _tensors(count: int, kind: str = "") -> str:
    return plural(count, f"{kind}tensor", spec="")
