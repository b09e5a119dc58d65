"""The folding of BatchNorm with kept statistics into the convolution before it.

In a frozen prefix this is done once, elsewhere in each step. With kept statistics BatchNorm only scales and shifts each
channel, and the convolution's weights can do the same: the tensor between the two is then neither computed nor kept for
the backward pass.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Collection, Iterator

import torch
from torch import fx, nn

from launcher.compat import convolve, has_forward_hooks
from launcher.training.feature_cache.tracing import traced


@dataclasses.dataclass(frozen=True)
class Pair:
    """A convolution and the BatchNorm that alone uses its output, by their names in a graph."""

    convolution: str
    norm: str
    rest: nn.Module
    """The operation of the norm after normalising: none, or the dropout and activation of timm's BatchNormAct2d."""


def pairs(module: fx.GraphModule) -> Iterator[Pair]:
    """Yield the convolutions of a graph whose outputs go only to a BatchNorm with statistics, and that BatchNorm."""
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
        rest = _after_norm(norm)
        alone = len(before.users) == 1 and calls[str(before.target)] == calls[str(node.target)] == 1
        if rest is not None and alone:
            yield Pair(str(before.target), str(node.target), rest)


def _after_norm(norm: nn.Module) -> nn.Module | None:
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    if type(norm).__name__ == "BatchNormAct2d":
        return nn.Sequential(norm.drop, norm.act)  # type: ignore[arg-type]
    return None


def fold_in_training(
    graph: fx.GraphModule, whole: nn.Module, micro_batch_size: int, image_size: int, apart: Collection[nn.Module] = ()
) -> int:
    """Fold norms into the convolutions before them, in a graph on the layers of `whole`, and return their number.

    In forward passes with gradients, and in no others, the weights become w * s and the bias b - mean * s, with the
    norm's s = weight / sqrt(var + eps) and b = bias. Gradients reach the original parameters, which keep their names,
    and outputs are the same to rounding.

    Norms in training mode, layers with hooks and layers in `apart` (which something else calls, too) stay as they are,
    as do pairs for which scaling the weights costs more than the norm would. For ResNet-18 at 224 px with all of it
    training, 32 images on 2 cores of an AMD EPYC in bfloat16, a step takes 0.97 of the time, and the process 1,480 MB
    instead of 1,610 MB.
    """
    found = list(pairs(graph))
    outputs = _output_sizes(whole, image_size) if found else {}
    count = 0
    for pair in found:
        convolution, norm = graph.get_submodule(pair.convolution), graph.get_submodule(pair.norm)
        assert isinstance(norm, nn.BatchNorm2d)
        if type(convolution) is not nn.Conv2d or norm.weight is None or norm.training:
            continue
        if any(has_forward_hooks(layer) or layer in apart for layer in (convolution, norm)):
            continue
        if micro_batch_size * outputs.get(convolution, 0) < convolution.weight[0].numel():
            continue
        # Only the classes of the two objects change: parameters, names and the graphs that call them stay.
        convolution.__class__ = _Folded
        vars(convolution)["norm"] = norm  # not registered, because it already has a name in the network
        norm.__class__ = _remains_of(type(norm))  # type: ignore[arg-type]
        vars(norm)["rest"] = pair.rest
        count += 1
    return count


def fold_whole(model: nn.Module, micro_batch_size: int, image_size: int) -> int:
    """Fold norms in a whole network as `fold_in_training` does; return 0 if the network cannot be traced."""
    if not any(isinstance(module, nn.BatchNorm2d) and not module.training for module in model.modules()):
        return 0
    try:
        graph = traced(model)
    except Exception:  # tracing runs the network's own code on placeholder values, so anything may be raised
        return 0
    return fold_in_training(graph, model, micro_batch_size, image_size)


class _Folded(nn.Conv2d):
    """A convolution that also scales and shifts as the norm behind it would, while gradients are enabled."""

    norm: nn.BatchNorm2d

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return super().forward(input)
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        mean = norm.running_mean if self.bias is None else norm.running_mean - self.bias
        weight, bias = self.weight * scale.view(-1, 1, 1, 1), torch.addcmul(norm.bias, mean, scale, value=-1)
        return convolve(self, input, weight, bias)


class _Remains:
    """The remaining work of a folded norm; this class precedes the norm's own class among the bases."""

    rest: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.rest(x) if torch.is_grad_enabled() else super().forward(x)  # type: ignore[misc]
        return outputs


@functools.cache
def _remains_of(kind: type[nn.BatchNorm2d]) -> type[nn.BatchNorm2d]:
    return type(f"Folded{kind.__name__}", (_Remains, kind), {})


@torch.no_grad()
def _output_sizes(model: nn.Module, image_size: int) -> dict[nn.Module, int]:
    """Return the number of pixels in the output map of each convolution for one image."""
    found: dict[nn.Module, int] = {}

    def see(layer: nn.Module, _: object, outputs: torch.Tensor) -> None:
        found[layer] = outputs.shape[-2] * outputs.shape[-1]

    hooks = [layer.register_forward_hook(see) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        weight = next(model.parameters())
        model(torch.zeros(1, 3, image_size, image_size, device=weight.device, dtype=weight.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return found
