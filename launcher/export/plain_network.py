"""Plain torchvision or timm network that exported weights load into, and the Python lines that build it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from launcher.backbones.plain_names import classifier_is_conv, classifier_name_of
from launcher.compat import versioned_state
from launcher.inference.finished_run import FinishedRun
from launcher.inference.loaded_model import LoadedModel
from launcher.recipe import heads
from launcher.recipe.abilities import DescribesPlainNetwork


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain:
    """A network that torchvision or timm builds."""

    library: str
    """Name of the library: "torchvision" or "timm"."""
    name: str
    kwargs: dict[str, Any]
    num_outputs: int
    classifier: str
    mlp: tuple[int, int] | None
    """Number of features and hidden width of the classifier if it is a `heads.MLP`; None if it is a single layer."""

    @property
    def is_timm(self) -> bool:
        """Return whether `timm.create_model` alone loads the network."""
        return self.library == "timm" and self.mlp is None

    @property
    def is_squeezenet(self) -> bool:
        """Return whether this is torchvision's SqueezeNet, which ends in a ReLU that would cut off negative outputs."""
        return self.library == "torchvision" and self.name.startswith("squeezenet")

    @property
    def is_mnasnet(self) -> bool:
        """Return whether this is torchvision's MNASNet, which needs a version that safetensors files do not hold."""
        return self.library == "torchvision" and self.name.startswith("mnasnet")

    def build(self, state: dict[str, torch.Tensor]) -> nn.Module:
        """Build the network with weights, in evaluation mode; raise RuntimeError unless all of them fit exactly."""
        network: nn.Module
        if self.library == "timm":
            import timm

            network = timm.create_model(self.name, num_classes=self.num_outputs, **self.kwargs)
        else:
            import torchvision

            network = torchvision.models.get_model(self.name, num_classes=self.num_outputs, **self.kwargs)
        if self.mlp is not None:
            features, hidden = self.mlp
            layers = nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, self.num_outputs)
            network.set_submodule(self.classifier, nn.Sequential(*layers))
        if self.is_squeezenet:
            network.set_submodule("classifier.2", nn.Identity())
        if self.is_mnasnet:
            state = versioned_state(state, {"": {"version": 2}})
        network.load_state_dict(state)
        return network.eval()

    def code(self) -> str:
        """Return Python code that does the same with the weights in `model.safetensors` in the folder `folder`."""
        kwargs = "".join(f", {key}={value!r}" for key, value in self.kwargs.items())
        make = "timm.create_model" if self.library == "timm" else "torchvision.models.get_model"
        lines = [f"network = {make}({self.name!r}, num_classes={self.num_outputs}{kwargs})"]
        if self.mlp is not None:
            features, hidden = self.mlp
            layers = f"nn.Linear({features}, {hidden}), nn.GELU(), nn.Linear({hidden}, {self.num_outputs})"
            lines.append(f"network.set_submodule({self.classifier!r}, nn.Sequential({layers}))")
        if self.is_squeezenet:
            lines.append('network.set_submodule("classifier.2", nn.Identity())  # it was trained without this ReLU')
        lines.append('state = load_file(folder / "model.safetensors")')
        if self.is_mnasnet:
            lines += ["state = OrderedDict(state)", 'state._metadata = {"": {"version": 2}}']
        return "\n".join([*lines, "network.load_state_dict(state)", "network.eval()"])

    def imports(self) -> list[str]:
        """Return the lines of imports that the code needs."""
        lines = [f"import {self.library}", "from safetensors.torch import load_file"]
        if self.mlp is not None or self.is_squeezenet:
            lines.append("from torch import nn")
        if self.is_mnasnet:
            lines.append("from collections import OrderedDict")
        return lines


def plain_of(finished: FinishedRun, model: LoadedModel) -> Plain | None:
    """Return the plain network of a run, or None if neither library builds it.

    This is so for a user's own backbone or head, and for a network without a single classifier.
    """
    head, backbone = finished.recipe.head, model.backbone
    # The arguments come from the recipe's part, which is checked, and not from model.json: timm would accept any from
    # there, even a file to load.
    part = finished.recipe.backbone
    described = part.plain() if isinstance(part, DescribesPlainNetwork) else {}
    classifier = classifier_name_of(backbone)
    if described.get("library") not in ("torchvision", "timm") or classifier is None:
        return None
    mlp = None
    if isinstance(head, heads.MLP):
        if classifier_is_conv(backbone):  # other layers follow such a classifier
            return None
        mlp = (int(backbone.num_features), head.hidden)  # type: ignore[arg-type]
    elif not isinstance(head, heads.Linear):
        return None
    return Plain(
        library=described["library"],
        name=described["name"],
        kwargs=dict(described["kwargs"]),
        num_outputs=int(finished.described["num_outputs"]),
        classifier=str(classifier),
        mlp=mlp,
    )
