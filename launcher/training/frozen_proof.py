"""Proof that what is frozen stands still, and that all processes hold the same weights."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import nn

from launcher.errors import UserError
from launcher.text import plural

if TYPE_CHECKING:
    from accelerate import Accelerator

NAMED = 5
"""Tensors that an error names; the rest is counted."""


@dataclasses.dataclass(frozen=True)
class Proof:
    """What was compared at one moment; the same digest as before: nothing has moved."""

    tensors: int
    """That are frozen: parameters and buffers."""
    digest: str
    """Of all their hashes."""


def proof_of(frozen: Mapping[str, str]) -> Proof:
    """`frozen`: hashes of what must not change, by name."""
    told = "".join(f"{name}\0{frozen[name]}\0" for name in sorted(frozen))
    return Proof(len(frozen), hashlib.blake2b(told.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest())


def fingerprint(tensor: torch.Tensor) -> str:
    """A hash of a tensor's bytes, whatever its layout in memory."""
    data = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(data.numpy().data, digest_size=16).hexdigest()


def fingerprints(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, str]:
    """Hashes of the named parameters and buffers; of all by default."""
    state = model.state_dict()
    wanted = list(state if names is None else names)
    # hashlib lets go of Python's lock: the threads of this process, which stands still meanwhile, share the work.
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        return dict(zip(wanted, pool.map(fingerprint, [state[name] for name in wanted]), strict=True))


def prove(
    accelerator: Accelerator, model: nn.Module, frozen: Mapping[str, str], phase: str, more: Mapping[str, str]
) -> Proof:
    """Frozen tensors are what they were when the phase began, and all tensors are the same on all processes.

    `frozen` holds the hashes from then; `more` those of tensors outside of `model`, now. Called by all processes; each
    raises the same UserError, which names the tensors and the processes. Returns what was found of the frozen ones.
    """
    from accelerate.utils import gather_object

    now = fingerprints(model) | dict(more)
    moved = [name for name in now if name in frozen and now[name] != frozen[name]]
    whole = hashlib.blake2b("".join(now.values()).encode(), digest_size=16).hexdigest()
    reports: list[tuple[str, list[str]]] = gather_object([(whole, moved)])
    problems = []
    for process, (_, names) in enumerate(reports):
        if names:
            problems.append(
                f"phase {phase}: {_tensors(len(names), 'frozen ')} changed on process {process}: {_listed(names)}; "
                "something wrote to them (a hook, a shared tensor, a module put in training mode by hand)"
            )
    if len({digest for digest, _ in reports}) > 1:
        everyones: list[dict[str, str]] = gather_object([now])
        for process, theirs in enumerate(everyones):
            names = [name for name in now if theirs[name] != everyones[0][name]]
            if names:
                problems.append(
                    f"phase {phase}: processes 0 and {process} hold different values in {_tensors(len(names))}: "
                    f"{_listed(names)}"
                )
    if problems:
        raise UserError(*problems)
    return proof_of({name: now[name] for name in frozen if name in now})


def _tensors(count: int, kind: str = "") -> str:
    return plural(count, f"{kind}tensor", spec="")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
