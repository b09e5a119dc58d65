"""The folding of BatchNorm with kept statistics into the convolution before it.

With kept statistics BatchNorm only scales and shifts each channel, and the convolution's weights can do the same: the
tensor between the two is then not computed.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


@torch.no_grad()
def with_folded_norms(
    module: fx.GraphModule, memory_format: torch.memory_format = torch.channels_last
) -> fx.GraphModule | None:
    """Return a copy with BatchNorm folded into the convolutions before it, or None if there is none to fold."""
    module = copy.deepcopy(module)
    folded = list(pairs(module))
    for convolution, norm, after in folded:
        layers: Any = module.get_submodule(convolution), module.get_submodule(norm)
        module.set_submodule(convolution, fuse_conv_bn_eval(*layers))
        module.set_submodule(norm, after)
    return module.to(memory_format=memory_format).eval() if folded else None


def pairs(module: fx.GraphModule) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield the convolutions of a graph whose outputs go only to a BatchNorm with statistics, and that BatchNorm.

    Both are names; the third value is what the norm does after normalising: nothing, or the dropout and activation of
    timm's BatchNormAct2d.
    """
    nodes = [node for node in module.graph.nodes if node.op == "call_module"]
    layers = {node: module.get_submodule(str(node.target)) for node in nodes}
    calls = Counter(str(node.target) for node in nodes)
    for node in nodes:
        norm, before = layers[node], node.args[0] if node.args else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or before not in layers:
            continue
        assert isinstance(before, fx.Node)
        # Other kinds of convolutions change their weights in each forward pass.
        if type(layers[before]).__name__ not in ("Conv2d", "Conv2dSame"):
            continue
        after = _after_norm(norm)
        alone = len(before.users) == 1 and calls[str(before.target)] == calls[str(node.target)] == 1
        if after is not None and alone:
            yield str(before.target), str(node.target), after


def _after_norm(norm: nn.Module) -> nn.Module | None:
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    if type(norm).__name__ == "BatchNormAct2d":
        return nn.Sequential(norm.drop, norm.act)  # type: ignore[arg-type]
    return None
