"""Graph of a network's operations, and those of them that depend on nothing that trains.

The graph is torch.fx's, traced as in torchvision's feature extraction: layers of `torch.nn` and of `torchvision.ops`
stay whole, and so do the layers that timm has marked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from typing import Any

import torchvision.ops
from torch import fx, nn

from launcher.compat import has_forward_hooks, is_assertion

_STILL_IN_TRAINING = (
    nn.modules.activation,
    nn.modules.pooling,
    nn.modules.padding,
    nn.modules.flatten,
    nn.modules.upsampling,
    nn.modules.pixelshuffle,
    nn.modules.channelshuffle,
)
"""Modules of layers without parameters that compute the same in training mode (RReLU and attention apart)."""


class WholeTracer(fx.Tracer):
    """Tracer that keeps library layers whole, and the head, which need not be traceable.

    Sequences of layers to which a library gives a name (torchvision's Conv2dNormActivation) are split into their
    layers.
    """

    def __init__(self) -> None:
        super().__init__(autowrap_functions=_timm_functions(), param_shapes_constant=True)
        self._whole = (*_classes_of(torchvision.ops), *_timm_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            module_qualified_name == "head"
            or (isinstance(m, self._whole) and type(m).forward is not nn.Sequential.forward)
            or super().is_leaf_module(m, module_qualified_name)
        )


def traced(model: nn.Module) -> fx.GraphModule:
    """Return the graph of `model` on its own layers, each module in its present mode (training or evaluation).

    A network that cannot be traced, because its forward asks for values of tensors, may raise any exception.
    """
    graph = WholeTracer().trace(model)
    for node in list(graph.nodes):
        if node.op == "call_function" and is_assertion(node.target):
            graph.erase_node(node)
    module = fx.GraphModule(model, graph)
    for name in [name for name in vars(model) if name.startswith("_tensor_constant")]:
        delattr(model, name)  # left by the tracer; the graph has its own now
    return module


def hooked(model: nn.Module) -> str | None:
    """Return the name of a module with hooks, which a graph that takes it apart would not call, or None."""
    tracer = WholeTracer()
    for name, module in model.named_modules():
        if has_forward_hooks(module) and not tracer.is_leaf_module(module, name):
            return str(name)
    return None


def frozen_nodes(
    training: fx.GraphModule, evaluation: fx.GraphModule, model: nn.Module, in_training: Collection[str]
) -> set[str]:
    """Return the names of nodes whose outputs for an image stay the same during a phase, in training and evaluation.

    `training` and `evaluation` are `model` traced in both modes, and `in_training` names the modules that are then in
    training mode. A node is frozen if both graphs have it, on frozen inputs, and if it neither trains nor draws at
    random. Where the graphs differ (timm leaves stochastic depth out of evaluation), a name may stand for different
    nodes: the same operation on the same inputs is the same node.
    """
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    twins = {node.name: node for node in evaluation.graph.nodes}
    frozen: set[str] = set()
    for node in training.graph.nodes:
        twin = twins.get(node.name)
        trains = (
            node.op == "output"
            or (node.op == "call_module" and _changes(modules[str(node.target)], str(node.target) in in_training))
            or (node.op == "get_attr" and getattr(parameters.get(str(node.target)), "requires_grad", False))
        )
        same = twin is not None and _described(node) == _described(twin)
        if same and not trains and all(before.name in frozen for before in node.all_input_nodes):
            frozen.add(node.name)
    return frozen


def _changes(module: nn.Module, in_training: bool) -> bool:
    """Return whether a module's output for the same input may change during a phase."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return True
    if not in_training or isinstance(module, nn.Identity):
        return False
    kind = sys.modules.get(type(module).__module__)
    if isinstance(module, (nn.RReLU, nn.MultiheadAttention)) or kind not in _STILL_IN_TRAINING:
        # Dropout, stochastic depth, BatchNorm without parameters, and unknown layers.
        return getattr(module, "p", 1.0) != 0.0
    return False


def _described(node: fx.Node) -> tuple[str, ...]:
    return node.op, str(node.target), repr(node.args), repr(node.kwargs)


def _classes_of(package: Any) -> tuple[type[nn.Module], ...]:
    return tuple(kind for kind in vars(package).values() if isinstance(kind, type) and issubclass(kind, nn.Module))


def _timm_modules() -> tuple[type[nn.Module], ...]:
    """Return the layers that timm has marked; none if timm was not imported, for then it built no network either."""
    layers = sys.modules.get("timm.layers")
    return tuple(layers.get_notrace_modules()) if layers else ()


def _timm_functions() -> tuple[Callable[..., Any], ...]:
    layers = sys.modules.get("timm.layers")
    return tuple(layers.get_notrace_functions()) if layers else ()
