"""Networks of timm as backbones (extra: timm)."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, model_validator

from launcher.assets.bundle import Asset, OwnPath
from launcher.assets.timm_hub import check_published, fetch_published, published_asset, published_file
from launcher.assets.torch_hub import described
from launcher.backbones.classifier import describe_classifier
from launcher.backbones.state_dict import load_backbone, matched_by_order, without_common_prefix
from launcher.backbones.timm_network import Skeleton
from launcher.backbones.weight_files import StoredWeights, is_path, origin, read_weights, stored_assets, stored_weights
from launcher.errors import Problems, UserError, did_you_mean, pip_install
from launcher.recipe.part import part
from launcher.recipe.protocols import Preprocessing

if TYPE_CHECKING:
    from torch import nn


@part
class Timm:
    """A network of timm without its classifier; parameter names stay timm's. Needs `pip install timm`."""

    name: str
    """Name as in `timm.list_models()`, with or without a tag of weights: "vit_small_patch16_224.augreg_in1k"."""
    weights: str | None = Field(default="DEFAULT", min_length=1)
    """Tag of published weights ("DEFAULT": the tag in the name, else timm's first), path of a weights file
    (.safetensors, .pth, .pt, .bin), run dir of an earlier run, or None for random weights."""
    image_size: int | None = Field(default=None, ge=1, le=16_384)
    """Side of the images in pixels; None: the size that the weights were made for."""
    match_by_order: bool = False
    """Assignment of a weights file's tensors by their order, if their names are not the network's (shapes are
    checked)."""

    @model_validator(mode="after")
    def _only_a_file_has_an_order(self) -> Timm:
        if self.match_by_order and not (self.weights and is_path(self.weights)):
            raise ValueError("match_by_order needs weights=<a .pth file>")
        if self.match_by_order and self.weights and self.weights.endswith(".safetensors"):
            raise ValueError("match_by_order cannot read .safetensors: such files keep tensors by name, not in order")
        return self

    def check(self) -> None:
        """Raise UserError for an unknown name, unavailable weights or an impossible size, with all problems at once.

        The network is not built and nothing is downloaded; the server is only asked, for at most 8 s, whether it has
        weights that are not cached.
        """
        self._architecture()
        problems = Problems()
        with problems.collected():
            if self._is_published():
                check_published(self.weights or "", self._config())
            elif (stored := self._stored()) is not None:
                read_weights(stored.file)
        with problems.collected():
            if self.image_size is not None:
                self._skeleton().output_width(self.preprocessing().image_size)
        problems.raise_if_any()

    def fetch(self) -> None:
        """Fetch published weights into the cache of the Hugging Face hub, if they are not there yet.

        Raises UserError if they cannot be fetched.
        """
        if self._is_published():
            fetch_published(self.weights or "", self._config())

    def assets(self) -> list[Asset | OwnPath]:
        """Return the weights that `build` needs, without asking the network. Raises UserError for invalid settings."""
        if self._is_published():
            return [published_asset(self.weights or "", f"timm/{self._full_name()}", self._config())]
        return stored_assets(self.weights) if self.weights else []

    def resolved_weights(self) -> str | None:
        """Return what `weights` stands for: the actual tag behind "DEFAULT", the path as given, or None."""
        return cast(str, self._config().tag) if self._is_published() else self.weights

    def weights_source(self) -> str:
        """Describe the origin of the weights for people: the actual tag behind "DEFAULT", and the file."""
        if self._is_published():
            return described(f"timm/{self._full_name()}", self.weights, published_file(self._config()))
        return origin(self._stored())

    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing of the run or of the published weights; else that of the network's default weights.

        Weights that timm evaluates without keeping the aspect ratio (crop mode "squash") get the centre crop, too.
        """
        stored = self._stored()
        preset = stored.preset() if stored is not None else None
        self._check_image_size()
        if preset is not None:
            return preset if self.image_size is None else self._at(preset, preset.image_size / preset.resize_size)
        from timm.data import resolve_data_config

        config = resolve_data_config({}, pretrained_cfg=self._config().to_dict())
        size = config["input_size"][-1]
        at_own_size = Preprocessing(
            image_size=size,
            resize_size=math.floor(size / config["crop_pct"]),
            mean=config["mean"],
            std=config["std"],
            interpolation=config["interpolation"],
        )
        return at_own_size if self.image_size is None else self._at(at_own_size, config["crop_pct"])

    def build(self) -> nn.Module:
        """Build the timm network without its classifier: (N, 3, H, W) -> (N, num_features).

        It has the attribute `num_features` and, if the original has a single linear classifier, `classifier_name`,
        `classifier_has_bias` and `classifier_is_conv`. Published weights are fetched if they are not in the cache.

        Raises UserError for everything that `check` refuses, and for weights that do not fit.
        """
        import timm

        skeleton = self._skeleton()
        one_layer = skeleton.classifier
        if one_layer is None or self.image_size is not None:
            width = skeleton.output_width(self.preprocessing().image_size)
        if self._is_published():
            file = fetch_published(self.weights or "", self._config())
            network = self._build_published(str(file))
        else:
            network = timm.create_model(self._full_name(), pretrained=False, num_classes=0, **self._build_arguments())
            self._load(network, skeleton)
        if one_layer is not None:
            describe_classifier(network, *one_layer)
        else:
            network.num_features = width
        return cast("nn.Module", network)

    def plain(self) -> dict[str, Any]:
        """Return a JSON description with which timm rebuilds the whole network.

        `timm.create_model(name, num_classes=..., **kwargs)` builds it, and it then loads `plain_state_dict` with
        strict=True; if that is not so, "note" explains it.
        """
        described: dict[str, Any] = {"library": "timm", "name": self._full_name(), "kwargs": self._build_arguments()}
        if self._skeleton().classifier is None:
            described["kwargs"]["num_classes"] = 0
            described["note"] = (
                "this network has no single linear classifier: tensors named backbone.* are the network with "
                "num_classes=0, those named head.* are the layers on its output"
            )
        return described

    def _build_published(self, file: str) -> Any:
        import timm

        # timm loads strictly only with the published number of classes, so the classifier is removed afterwards.
        custom = {"custom_load": False} if not file.endswith(".npz") else {}
        try:
            network = timm.create_model(
                self._full_name(),
                pretrained=True,
                pretrained_cfg_overlay={"file": file, **custom},
                **self._build_arguments(),
            )
        except Exception as error:  # the readers of three formats raise all kinds of errors for a broken file
            why = f"{file} is broken or does not fit {self._full_name()}: {error}"
            raise UserError(f"backbone.weights: {why}") from error
        network.reset_classifier(0)
        return network

    def _load(self, network: nn.Module, skeleton: Skeleton) -> None:
        stored = self._stored()
        if stored is None:
            return
        tensors = read_weights(stored.file)
        if stored.network is not None and all(name.startswith(("backbone.", "head.")) for name in tensors):
            tensors = {n.removeprefix("backbone."): t for n, t in tensors.items() if n.startswith("backbone.")}
        if self.match_by_order and stored.file.suffix == ".safetensors":
            raise UserError(
                f"backbone.match_by_order: {stored.file} keeps its tensors by name, not in order; "
                "use backbone.match_by_order=false"
            )
        if self.match_by_order:
            tensors = matched_by_order(network, skeleton.names, tensors, str(stored.file))
        own = network.state_dict()
        tensors = without_common_prefix(tensors, own, str(stored.file))
        kept = {name: tensor for name, tensor in tensors.items() if name in own or name not in skeleton.names}
        if self.image_size is not None:
            kept = skeleton.at_image_size(kept, network)
        renamed = not self.match_by_order and len(tensors) in (len(own), len(skeleton.names))
        hint = ""
        if renamed and any(name not in kept for name in own):
            hint = "; if its tensors stand in timm's order: backbone.match_by_order=true"
        elif any("pos_embed" in name and name in own and kept[name].shape != own[name].shape for name in kept):
            hint = "; its position embeddings are of another image size: give that as backbone.image_size"
        left_out = [skeleton.classifier[0]] if skeleton.classifier else []
        load_backbone(network, kept, str(stored.file), left_out, hint)

    def _architecture(self) -> str:
        try:
            import timm
        except ModuleNotFoundError as error:
            raise UserError(f"backbone: Timm needs the package timm: {pip_install('timm')}") from error
        architecture = self.name.partition(".")[0]
        if not timm.is_model(architecture):
            # timm has over a thousand names, so only a close one is worth listing.
            close = did_you_mean(architecture, timm.list_models())
            close = close if close.startswith("; did") else "; timm.list_models() tells them all"
            raise UserError(f"backbone.name={self.name!r}: timm has no such network{close}")
        return architecture

    def _is_published(self) -> bool:
        return self.weights is not None and not is_path(self.weights)

    def _full_name(self) -> str:
        """Return the architecture with its tag, as a tag can decide the image size for which a network is built.

        Raises UserError for an unknown architecture, and if `weights` and `name` give different tags.
        """
        from timm.models import get_pretrained_cfg

        architecture, named = self._architecture(), self.name.partition(".")[2]
        tag = self.weights if self._is_published() and self.weights != "DEFAULT" else named
        if named and tag != named:
            raise UserError(f"backbone.weights={self.weights!r}: backbone.name={self.name!r} names other weights")
        tag = tag or (get_pretrained_cfg(architecture).tag if self._is_published() else "")
        return f"{architecture}.{tag}" if tag else architecture

    def _config(self) -> Any:
        """Return timm's description of the weights (`PretrainedCfg`). Raises UserError for an unknown tag."""
        import timm
        from timm.models import get_pretrained_cfg

        try:
            return get_pretrained_cfg(self._full_name())
        except RuntimeError as error:
            architecture = self._architecture()
            tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
            asked = self._full_name().partition(".")[2]
            raise UserError(
                f"backbone.weights={asked!r}: {architecture} has no such weights; there are: "
                f"{', '.join(['DEFAULT', *tags])}, or a path of a file or of an earlier run, or none"
            ) from error

    def _stored(self) -> StoredWeights | None:
        return stored_weights(self.weights, "timm", self.name)

    def _build_arguments(self) -> dict[str, Any]:
        size = self.preprocessing().image_size
        config = self._config()
        return {"img_size": size} if config.fixed_input_size and size != config.input_size[-1] else {}

    def _skeleton(self) -> Skeleton:
        return Skeleton.of(self._full_name(), self._build_arguments())

    def _check_image_size(self) -> None:
        smallest = (self._config().min_input_size or (0,))[-1]
        if self.image_size is not None and self.image_size < smallest:
            raise UserError(f"backbone.image_size={self.image_size}: {self.name} needs at least {smallest} pixels")

    def _at(self, preset: Preprocessing, crop_share: float) -> Preprocessing:
        size = cast(int, self.image_size)
        return dataclasses.replace(preset, image_size=size, resize_size=math.floor(size / crop_share))
