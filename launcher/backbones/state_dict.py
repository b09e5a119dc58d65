"""Loading of stored tensors into a network: each one fits, or an error is raised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from launcher.compat import versioned_state
from launcher.errors import UserError
from launcher.text import plural

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_backbone(
    backbone: nn.Module, tensors: Mapping[str, torch.Tensor], source: str, left_out: Iterable[str] = (), hint: str = ""
) -> None:
    """Copy `tensors` into `backbone`, whose classifier has already been removed.

    `left_out` are dotted prefixes of tensors that are ignored (classifiers, auxiliary heads). All others must match in
    name and shape, except BatchNorm's `num_batches_tracked`, which files from before 2018 lack and which is only a
    counter. `source` is the name of the file for messages; `hint` is appended to a message.

    Raises UserError with the numbers and first names of tensors that are missing, unexpected or of another shape, and
    for values that are not finite.
    """
    prefixes = tuple(f"{name}." for name in left_out)
    own = backbone.state_dict()
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)} if prefixes else tensors
    misshaped = [name for name in kept if name in own and kept[name].shape != own[name].shape]
    fitting = {name: tensor for name, tensor in kept.items() if name not in misshaped}
    # strict=False returns lists of mismatches instead of raising; both are checked below. It also lets modules rename
    # tensors from older releases (ViT's mlp.linear_1), which a comparison of names would refuse.
    missing, unexpected = backbone.load_state_dict(_with_versions(backbone, fitting), strict=False)
    problems = [
        _counted("missing", [name for name in missing if name not in misshaped]),
        _counted("unexpected", unexpected),
        _counted("of another shape", [f"{n} {tuple(kept[n].shape)} for {tuple(own[n].shape)}" for n in misshaped]),
    ]
    if any(problems):
        of_all = f"of its {plural(len(own), 'tensor', spec='')} {'; '.join(filter(None, problems))}{hint}"
        raise UserError(f"backbone.weights: {source} does not fit the network: {of_all}")
    _check_finite(backbone, source)


def without_common_prefix(tensors: dict[str, torch.Tensor], own: Iterable[str], source: str) -> dict[str, torch.Tensor]:
    """Return the tensors below a prefix ("model.", "encoder_q.") without it, if they are the whole network.

    The other tensors then belong to other networks and are dropped. If there is no such prefix, all tensors are
    returned as they are.

    Raises UserError if the network is there below several prefixes.
    """
    needed = [name for name in own if not name.endswith(".num_batches_tracked")]
    if not needed or any(name in tensors for name in needed):
        return tensors
    prefixes = prefixes_of(tensors, needed)
    if not prefixes:
        return tensors
    # Of MoCo's two encoders, the query encoder is the trained one.
    if len(prefixes) > 1 and "encoder_q." not in prefixes:
        raise UserError(
            f"backbone.weights: {source} holds the network several times, below {', '.join(map(repr, prefixes))}; save "
            "one of them alone"
        )
    prefix = "encoder_q." if len(prefixes) > 1 else prefixes[0]
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def prefixes_of(tensors: Mapping[str, torch.Tensor], needed: Sequence[str]) -> list[str]:
    """Return the prefixes below which the tensors have all of these names."""
    ending = f".{needed[0]}"
    prefixes = sorted(name[: -len(needed[0])] for name in tensors if name.endswith(ending))
    return [prefix for prefix in prefixes if all(prefix + name in tensors for name in needed)]


def matched_by_order(
    backbone: nn.Module, names: Sequence[str], tensors: Mapping[str, torch.Tensor], source: str
) -> dict[str, torch.Tensor]:
    """Return `tensors` under the names of `backbone`, assigned in order as timm does; their own names are ignored.

    `names` are the names of the whole network; a file with as many tensors has a classifier, which is left out.

    Raises UserError if the number of tensors or their shapes differ.
    """
    from timm.models import remap_state_dict

    own = backbone.state_dict()
    stored = list(tensors.items())
    if len(stored) == len(names):
        stored = [pair for pair, name in zip(stored, names, strict=True) if name in own]
    elif len(stored) != len(own):
        raise UserError(
            f"backbone.weights: {source} has {plural(len(stored), 'tensor', spec='')}, the network {len(names)} "
            f"({len(own)} without classifier): they cannot be matched by their order"
        )
    try:
        return dict(remap_state_dict(dict(stored), backbone, allow_reshape=False))
    except AssertionError as error:
        raise UserError(f"backbone.weights: {source} cannot be matched by the order of its tensors: {error}") from error


def _counted(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what} ({shown})" if names else ""


def _with_versions(backbone: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    # torchvision's MNASNet refuses a state dict that does not state its version, which safetensors files cannot.
    # Version 2 has been the layout since torchvision 0.5 (2020).
    is_mnasnet = type(backbone).__name__ == "MNASNet"
    return versioned_state(tensors, {"": {"version": 2}}) if is_mnasnet else tensors


def _check_finite(backbone: nn.Module, source: str) -> None:
    bad = [name for name, t in backbone.state_dict().items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        counted = _counted("tensor" if len(bad) == 1 else "tensors", bad)
        raise UserError(f"backbone.weights: {source} holds values that are not finite: {counted}")
