"""Classification networks of torchvision as backbones."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from launcher.assets.bundle import Asset, OwnPath
from launcher.assets.torch_hub import check_cached, described, fetch, published_asset, torch_hub_file
from launcher.backbones.classifier import TORCHVISION_CLASSIFIERS, cut_classifier
from launcher.backbones.image_sizes import at_size, check_image_size, fit_position_embeddings
from launcher.backbones.state_dict import load_backbone, without_common_prefix
from launcher.backbones.weight_files import StoredWeights, is_path, origin, read_weights, stored_assets, stored_weights
from launcher.errors import Problems, UserError, did_you_mean
from launcher.recipe.part import part
from launcher.recipe.protocols import Preprocessing

if TYPE_CHECKING:
    import torch
    from torch import nn

AUXILIARY_HEADS = ("aux1", "aux2", "AuxLogits")


@part
class Torchvision:
    """A network of `torchvision.models` without its last classifying layer; parameter names stay torchvision's.

    The features are the inputs of the removed classifier: VGG's 4096-wide layers and ConvNeXt's LayerNorm, and dropout
    before the classifier, stay. Auxiliary classifiers (GoogLeNet, Inception) are removed.
    """

    name: str
    """Name as in `torchvision.models.list_models(module=torchvision.models)`: "resnet50", "vit_b_16", ..."""
    weights: str | None = Field(default="DEFAULT", min_length=1)
    """Name of published weights ("IMAGENET1K_V2"; "DEFAULT" is torchvision's best), path of a weights file
    (.safetensors, .pth, .pt, .bin), run dir of an earlier run, or None for random weights."""
    image_size: int | None = Field(default=None, ge=1, le=16_384)
    """Side of the images in pixels; None: the size that the weights were made for."""

    def check(self) -> None:
        """Raise UserError for an unknown name, unavailable weights or an impossible size, with all problems at once.

        The network is not built and nothing is downloaded; the server is only asked, for at most 8 s, whether it has a
        file that is not cached.
        """
        self._published_names()  # with an unknown name, all other checks are pointless
        problems = Problems()
        with problems.collected():
            if (published := self._published()) is not None:
                check_cached(self.weights or "", published.url)
            elif (stored := self._stored()) is not None:
                read_weights(stored.file)
        with problems.collected():
            if self.image_size is not None:
                check_image_size(self.name, self._family(), self.image_size, self._min_size())
        problems.raise_if_any()

    def fetch(self) -> None:
        """Fetch published weights into torch.hub's cache, if they are not there yet.

        Raises UserError if they cannot be fetched.
        """
        if (published := self._published()) is not None:
            fetch(self.weights or "", published.url)

    def assets(self) -> list[Asset | OwnPath]:
        """Return the weights that `build` needs, without asking the network. Raises UserError for invalid settings."""
        if (published := self._published()) is not None:
            return [published_asset(self.weights or "", str(published), published.url)]
        return stored_assets(self.weights) if self.weights else []

    def resolved_weights(self) -> str | None:
        """Return what `weights` stands for: the actual name behind "DEFAULT", the path as given, or None."""
        published = self._published()
        return self.weights if published is None else cast(str, published.name)

    def weights_source(self) -> str:
        """Describe the origin of the weights for people: the actual name behind "DEFAULT", and the file."""
        if (published := self._published()) is not None:
            return described(str(published), self.weights, torch_hub_file(published.url))
        return origin(self._stored())

    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing of the run or of the published weights; else that of the default weights."""
        preset = self._preset()
        if self.image_size is not None:
            check_image_size(self.name, self._family(), self.image_size, self._min_size())
        return at_size(preset, self.image_size)

    def build(self) -> nn.Module:
        """Build the network with nn.Identity in place of its last classifying layer: (N, 3, H, W) -> (N, num_features).

        It has the attributes `num_features`, `classifier_name`, `classifier_has_bias` and `classifier_is_conv`.
        Published weights are fetched if they are not in the cache.

        Raises UserError for everything that `check` refuses, and for weights that do not fit.
        """
        import torchvision

        kwargs = self._build_arguments()
        if self.weights is None and "init_weights" in kwargs:
            kwargs["init_weights"] = True
        network: nn.Module = torchvision.models.get_model(self.name, weights=None, **kwargs)
        cut_classifier(network, TORCHVISION_CLASSIFIERS[type(network).__name__])
        self._load(network)
        return network

    def plain(self) -> dict[str, Any]:
        """Return a JSON description with which torchvision rebuilds the whole network.

        `torchvision.models.get_model(name, num_classes=..., **kwargs)` builds it, and it then loads `plain_state_dict`
        with strict=True; if more is needed, "note" says what.
        """
        described: dict[str, Any] = {"library": "torchvision", "name": self.name, "kwargs": self._build_arguments()}
        if self._family() == "squeezenet":
            described["note"] = (
                "torchvision's SqueezeNet ends in a ReLU, which cuts negative outputs off; the outputs of this "
                "training are those of the network after: network.classifier[2] = torch.nn.Identity()"
            )
        if self._family() == "mnasnet":
            described["note"] = (
                "torchvision's MNASNet asks for a version that safetensors files do not hold; before load_state_dict: "
                'state = collections.OrderedDict(state); state._metadata = {"": {"version": 2}}'
            )
        return described

    def _load(self, network: nn.Module) -> None:
        if (published := self._published()) is not None:
            file = fetch(self.weights or "", published.url)
        elif (stored := self._stored()) is not None:
            file = stored.file
        else:
            return
        tensors = without_common_prefix(read_weights(file), network.state_dict(), str(file))
        if self._family() == "densenet":
            tensors = _densenet_names(tensors)
        if self._family() == "vision_transformer":
            asked = published is not None or self.image_size is not None
            tensors = fit_position_embeddings(tensors, self.name, self.preprocessing().image_size, asked, str(file))
        left_out = (cast(str, network.classifier_name), *AUXILIARY_HEADS)
        load_backbone(network, tensors, str(file), left_out)

    def _build_arguments(self) -> dict[str, Any]:
        family, image_size = self._family(), self.preprocessing().image_size
        if family in ("googlenet", "inception"):
            # Published weights expect inputs in [-1, 1]; with transform_input, the network itself undoes ImageNet's
            # mean and std.
            transform_input = self.weights is not None
            stored = self._stored()
            if stored is not None and stored.network is not None:
                transform_input = bool(stored.network.get("kwargs", {}).get("transform_input", True))
            return {"aux_logits": False, "transform_input": transform_input, "init_weights": False}
        if family == "vision_transformer":
            return {"image_size": image_size}
        if family == "maxvit":
            return {"input_size": [image_size, image_size]}
        return {}

    def _published_names(self) -> list[str]:
        import torchvision

        names = torchvision.models.list_models(module=torchvision.models)
        if self.name not in names:
            raise UserError(
                f"backbone.name={self.name!r}: torchvision has no such classification network"
                f"{did_you_mean(self.name, names)}"
            )
        # VGG16's IMAGENET1K_FEATURES has no classes: its layers after the convolutions are NaN.
        published = torchvision.models.get_model_weights(self.name)
        return [weights.name for weights in published if weights.meta["categories"] is not None]

    def _published(self) -> Any:
        """Return the torchvision enum member that `weights` names, or None for a path or random weights."""
        import torchvision

        names = self._published_names()
        if self.weights is None or is_path(self.weights):
            return None
        published = torchvision.models.get_model_weights(self.name)
        name = self.weights.removeprefix(f"{published.__name__}.")
        if name == "DEFAULT":
            return published.DEFAULT
        if name not in names:
            if name in published.__members__:
                raise UserError(
                    f"backbone.weights={self.weights!r}: they hold the convolutions alone, all other layers of "
                    f"{self.name} are not numbers; there are: {', '.join(['DEFAULT', *names])}"
                )
            raise UserError(
                f"backbone.weights={self.weights!r}: {self.name} has no such weights; there are: "
                f"{', '.join(['DEFAULT', *names])}, or a path of a file or of an earlier run, or none"
            )
        return published[name]

    def _stored(self) -> StoredWeights | None:
        return stored_weights(self.weights, "torchvision", self.name)

    def _family(self) -> str:
        import torchvision

        self._published_names()
        return cast(str, torchvision.models.get_model_builder(self.name).__module__.rpartition(".")[2])

    def _preset(self) -> Preprocessing:
        stored = self._stored()
        if stored is not None and (own := stored.preset()) is not None:
            return own
        preset = self._any_published().transforms()
        return Preprocessing(
            image_size=preset.crop_size[0],
            resize_size=preset.resize_size[0],
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=preset.interpolation.value,
        )

    def _any_published(self) -> Any:
        import torchvision

        return self._published() or torchvision.models.get_model_weights(self.name).DEFAULT

    def _min_size(self) -> int:
        return int(self._any_published().meta["min_size"][0])


def _densenet_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # The published DenseNets date from a time when their layers were called norm.1, not norm1.
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
    return {old.sub(r"\1\2.", name): tensor for name, tensor in tensors.items()}
