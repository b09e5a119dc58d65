"""Machines with and without network, and what a server has for them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
import torchvision
from safetensors.torch import save_file

from commands import ROOT, SUPPORT, CliResult, run_python
from weight_server import Server

RECIPE = str(SUPPORT / "remote_assets.py")
CLOSED = "http://127.0.0.1:9"
WITHOUT_NETWORK = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), CLOSED) | {
    "HF_ENDPOINT": CLOSED,
    "NO_PROXY": "",
    "no_proxy": "",
}


class Machine:
    """A user's machine: a home of its own, so that nothing is in any cache, and a network or none."""

    def __init__(self, folder: Path, server: Server, published: Path, network: bool = True) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (weights,) = (published / "files").glob("shufflenet-*.pth")
        home = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "SHUFFLENET": weights.name}
        home |= {"HF_HOME": str(folder / "cache" / "huggingface"), "TORCH_HOME": str(folder / "cache" / "torch")}
        home |= {"HF_ENDPOINT": server.address, "SERVER": server.address} | ({} if network else WITHOUT_NETWORK)
        path = f"{ROOT}:{SUPPORT}"
        self.environ = {
            **home,
            "PYTHONPATH": path,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def run(self, *words: str, **environ: str) -> CliResult:
        return run_python("-m", "launcher", *words, cwd=self.folder, env=self.environ | environ)

    def start(self, *words: str) -> subprocess.Popen[str]:
        environ = os.environ | self.environ
        command = [sys.executable, "-m", "launcher", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environ, stdout=pipe, stderr=pipe, text=True)

    def train(self, variable: str, name: str, *words: str, **environ: str) -> CliResult:
        return self.run(f"{RECIPE}:{variable}", "--workers", "0", "--run-dir", name, *words, **environ)


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "MANIFEST.json").read_text())["assets"])


def contents(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 16), (value, 0, 255 - value)).save(buffer, "PNG")
    return buffer.getvalue()


def animals(count: int) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])})
    rows = [{"bytes": png(7 * row), "path": f"{row}.png"} for row in range(count)]
    return datasets.Dataset.from_dict({"image": rows, "label": [row % 3 for row in range(count)]}, features)


def idx(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """A file of MNIST's format."""
    return gzip.compress(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def publish(folder: Path) -> None:
    """What the server has: weights at a URL, weights and a data set in repositories of a hub, a set of torchvision."""
    (folder / "files" / "fashion").mkdir(parents=True)
    torch.manual_seed(0)
    draft = folder / "files" / "draft.pth"
    torch.save(torchvision.models.shufflenet_v2_x0_5().state_dict(), draft)
    draft.rename(draft.with_name(f"shufflenet-{hashlib.sha256(draft.read_bytes()).hexdigest()[:8]}.pth"))

    import timm

    repository = folder / "models" / "timm" / "resnet10t.c3_in1k"
    repository.mkdir(parents=True)
    save_file(timm.create_model("resnet10t").state_dict(), repository / "model.safetensors")

    repository = folder / "datasets" / "someone" / "pets"
    (repository / "data").mkdir(parents=True)
    (repository / "README.md").write_text("# Pets\n")
    animals(30).to_parquet(repository / "data" / "train-00000-of-00001.parquet")
    animals(9).to_parquet(repository / "data" / "validation-00000-of-00001.parquet")

    for row in range(12):
        image = folder / "datasets" / "someone" / "folders" / "train" / "ab"[row % 2] / f"{row}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(png(20 * row))
    (folder / "datasets" / "someone" / "folders" / "README.md").write_text("# Folders\n")
    (folder / "files" / "count.txt").write_text("64")

    draw = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        images = idx(draw.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        (folder / "files" / "fashion" / f"{part}-images-idx3-ubyte.gz").write_bytes(images)
        labels = idx(np.arange(count, dtype=np.uint8) % 10)
        (folder / "files" / "fashion" / f"{part}-labels-idx1-ubyte.gz").write_bytes(labels)
