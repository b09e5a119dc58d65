"""Cut of a network at the end of what is frozen: images -> prefix -> boundary tensors -> tail -> outputs."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from launcher.recipe.phases import NormStatistics
from launcher.training.feature_cache.tracing import frozen_nodes, hooked, traced
from launcher.training.model import TransferModel, set_train_mode


@dataclasses.dataclass(frozen=True)
class BoundaryTensor:
    """Boundary tensor: one that goes from the prefix to the tail, for each image."""

    name: str
    """Name of the operation that computes it."""
    shape: tuple[int, ...]
    """Shape without the batch dimension."""

    @property
    def values(self) -> int:
        """Number of values for one image."""
        return int(torch.Size(self.shape).numel())


class Tail(nn.Module):
    """Rest of a network, which trains or depends on what trains: boundary tensors (N, ...) to outputs (N, num_outputs).

    It holds the whole network, under the network's own parameter names, but computes only the operations in its graphs.
    The network's mode (training or evaluation) selects one of the two graphs.
    """

    def __init__(self, model: TransferModel, training: fx.GraphModule, evaluation: fx.GraphModule) -> None:
        super().__init__()
        self.model = model
        # In a tuple, so that they are not registered: they share the parameters of `model`, and each has one name only.
        self._graphs = (training, evaluation)

    def forward(self, *boundary: torch.Tensor) -> torch.Tensor:
        training, evaluation = self._graphs
        outputs: torch.Tensor = (training if self.model.training else evaluation)(*boundary)
        return outputs


@dataclasses.dataclass(frozen=True)
class Cut:
    """Network cut in two; the prefix shares the modules of the network itself."""

    prefix: nn.Module
    """Module from images (N, 3, S, S) to a tuple of boundary tensors."""
    tail: Tail
    boundary: tuple[BoundaryTensor, ...]
    operations: str
    """Description of what the prefix computes, without its weights; it changes only if the computation does."""


@dataclasses.dataclass(frozen=True)
class Uncut:
    """Network that stays whole.

    `reason` says why a frozen prefix cannot be cut off; it is None if there is none to cut off.
    """

    reason: str | None


@torch.no_grad()
def cut(model: TransferModel, norm_statistics: NormStatistics, image_size: int) -> Cut | Uncut:
    """Cut `model` at the end of what is frozen, or return why that is impossible.

    The parameters of `model` are frozen or not already, and it is on its final device; its modes are changed. Prefix
    and tail together give the outputs of the whole network, bit for bit: this is checked on two images.
    """
    if next(iter(model.parameters())).requires_grad and all(p.requires_grad for p in model.parameters()):
        return Uncut(None)
    if (name := hooked(model)) is not None:
        return _at_features(model, f"{name} has hooks")
    set_train_mode(model, norm_statistics)
    try:
        training = traced(model)
        in_training = {name for name, module in model.named_modules() if module.training}
        model.eval()
        evaluation = traced(model)
        frozen = frozen_nodes(training, evaluation, model, in_training)
    except Exception as error:  # tracing runs the network's own code on symbolic values, which may raise anything
        return _at_features(model, " ".join(f"{type(error).__name__}: {error}".split())[:200])
    two = _images(2, model, image_size)
    try:
        values = _values(evaluation, two[:1]), _values(evaluation, two)
        parts = _cut(model, training, evaluation, frozen, values)
    except _NoCutError as error:
        return Uncut(str(error) or None)
    model.eval()
    outputs: torch.Tensor = model(two)
    if not torch.equal(parts.tail(*parts.prefix(two)), outputs):
        return _at_features(model, "its two parts give other outputs than the whole")
    return parts


class _NoCutError(Exception):
    pass


def _cut(
    model: TransferModel,
    training: fx.GraphModule,
    evaluation: fx.GraphModule,
    frozen: set[str],
    values: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> Cut:
    nodes = {node.name: node for node in evaluation.graph.nodes}
    kinds = {name: _kind(values[0][name], values[1][name]) for name in frozen}
    known = {name: values[0][name] for name in frozen if kinds[name] == "number"}
    # Both tails take the same tensors, though one may need fewer.
    needed = [_needed(network.graph, kinds) for network in (training, evaluation)]
    boundary = sorted(needed[0][1] | needed[1][1], key=list(nodes).index)
    images = next(node.name for node in nodes.values() if node.op == "placeholder")
    if images in boundary:
        raise _NoCutError  # the first layer trains
    modules = dict(model.named_modules())
    for name in reversed(boundary[1:]):
        if _is_cheap(nodes[name], modules, [*boundary, *known]):
            boundary.remove(name)
            for names, _ in needed:
                names.add(name)
    batch = [name for name, value in known.items() if value != values[1][name]]
    prefix = _graph_of_prefix(evaluation.graph, boundary)
    tails = [
        _graph_of_tail(network.graph, boundary, names, known, batch)
        for network, (names, _) in zip((training, evaluation), needed, strict=True)
    ]
    return Cut(
        prefix=fx.GraphModule(evaluation, prefix),
        tail=Tail(model, fx.GraphModule(training, tails[0]), fx.GraphModule(evaluation, tails[1])),
        boundary=tuple(BoundaryTensor(name, tuple(values[0][name].shape[1:])) for name in boundary),
        operations=_in_words(prefix, model),
    )


def _needed(graph: fx.Graph, kinds: Mapping[str, str]) -> tuple[set[str], set[str]]:
    """Return the names of the nodes that the tail computes, and of the boundary tensors that it takes.

    The tail computes all nodes that are not frozen, and the frozen nodes it needs that are not one tensor per image.
    Frozen numbers are in neither set.
    """
    needed, boundary = {node.name for node in graph.nodes if node.name not in kinds}, set[str]()
    to_visit = [node for node in graph.nodes if node.name in needed]
    while to_visit:
        for before in to_visit.pop().all_input_nodes:
            if before.name in needed or before.name in boundary or kinds[before.name] == "number":
                continue
            if kinds[before.name] == "batched":
                boundary.add(before.name)
            else:
                needed.add(before.name)
                to_visit.append(before)
    return needed, boundary


def _kind(of_one: Any, of_two: Any) -> str:
    """Classify a value of the graph, seen with one image and with two, as "batched", "number" or "other"."""
    if isinstance(of_one, torch.Tensor):
        shapes = of_one.shape, of_two.shape
        batched = len(shapes[0]) > 0 and shapes[0][0] == 1 and shapes[1] == (2, *shapes[0][1:])
        return "batched" if batched and of_one.is_floating_point() else "other"
    if isinstance(of_one, int) and (of_one == of_two or (of_one, of_two) == (1, 2)):
        return "number"
    return "other"


def _is_cheap(node: fx.Node, modules: Mapping[str, nn.Module], known: Sequence[str]) -> bool:
    """Return whether a boundary tensor follows from others without parameters, so that the tail can compute it itself.

    Examples are DenseNet's concatenation of one tensor, and Inception's pooling of the tensor that its other branches
    convolve.
    """
    has_parameters = node.op == "call_module" and next(modules[str(node.target)].parameters(), None) is not None
    return not has_parameters and all(before.name in known for before in node.all_input_nodes)


def _graph_of_prefix(source: fx.Graph, boundary: Sequence[str]) -> fx.Graph:
    needed = dict.fromkeys(boundary, True)
    for node in reversed(source.nodes):
        if needed.get(node.name):
            needed |= {before.name: True for before in node.all_input_nodes}
    graph, copies = fx.Graph(), dict[str, fx.Node]()
    for node in source.nodes:
        if node.op == "placeholder" or needed.get(node.name):
            copies[node.name] = graph.node_copy(node, lambda before: copies[before.name])
    graph.output(tuple(copies[name] for name in boundary))
    return graph


def _graph_of_tail(
    source: fx.Graph, boundary: Sequence[str], needed: set[str], known: Mapping[str, Any], batch: Sequence[str]
) -> fx.Graph:
    graph, copies = fx.Graph(), dict[str, Any](known)
    for name in boundary:
        copies[name] = graph.placeholder(name)
    used = {before.name for node in source.nodes if node.name in needed for before in node.all_input_nodes}
    if used.intersection(batch):
        shape = graph.call_function(getattr, (copies[boundary[0]], "shape"))
        copies |= dict.fromkeys(batch, graph.call_function(operator.getitem, (shape, 0)))
    for node in source.nodes:
        if node.name in needed:
            # A node may be replaced by a number, also within a slice or a dictionary: `map_arg` looks into all
            # containers that a graph may hold.
            arguments, keywords = fx.map_arg((node.args, node.kwargs), lambda before: copies[before.name])
            if node.op == "output":
                graph.output(arguments[0])
            else:
                copies[node.name] = graph.create_node(node.op, node.target, arguments, keywords, node.name)
    return graph


def _in_words(graph: fx.Graph, model: nn.Module) -> str:
    modules = dict(model.named_modules())
    lines = []
    for node in graph.nodes:
        of = node.target
        target = of if isinstance(of, str) else getattr(of, "__qualname__", repr(of))
        module = repr(modules[str(node.target)]) if node.op == "call_module" else ""
        lines.append(f"{node.name} = {node.op} {target} {node.args} {node.kwargs} {module}")
    return "\n".join(lines)


class _Features(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.backbone(images),)


def _at_features(model: TransferModel, reason: str) -> Cut | Uncut:
    """Cut between backbone and head, which needs no graph, or return `reason` if the backbone is not wholly frozen."""
    if any(parameter.requires_grad for parameter in model.backbone.parameters()):
        return Uncut(f"{type(model.backbone).__name__} cannot be cut where it is frozen: {reason}")
    if any(module.training for module in model.backbone.modules()):
        model.backbone.eval()
    graph = fx.Graph()
    features = graph.placeholder("features")
    graph.output(graph.call_module("head", (features,)))
    width = int(model.backbone.num_features)  # type: ignore[arg-type]
    return Cut(
        prefix=_Features(model.backbone),
        tail=Tail(model, fx.GraphModule(model, graph), fx.GraphModule(model, graph)),
        boundary=(BoundaryTensor("features", (width,)),),
        operations=repr(model.backbone),
    )


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.seen: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        # Only the shapes of tensors are needed. ("Fake" tensors, without content, would take longer than real images.)
        self.seen[n.name] = torch.empty_like(value, device="meta") if isinstance(value, torch.Tensor) else value
        return value


def _values(graph: fx.GraphModule, images: torch.Tensor) -> Mapping[str, Any]:
    recorder = _Recorder(graph)
    recorder.run(images)
    return recorder.seen


def _images(count: int, model: nn.Module, image_size: int) -> torch.Tensor:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, image_size, image_size, generator=generator)
    return images.to(device, memory_format=torch.channels_last)
