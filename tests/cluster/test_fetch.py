"""Weights and data sets for machines without network: fetched once, verified, and used alone."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from conftest import ROOT, CliResult, run_python
from safetensors.torch import load_file, save_file
from serving import Server, served

HERE = Path(__file__).parent
RECIPE = str(HERE / "needing.py")
CLOSED = "http://127.0.0.1:9"
WITHOUT_NETWORK = {name: CLOSED for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy")} | {
    "HF_ENDPOINT": CLOSED,
    "NO_PROXY": "",
    "no_proxy": "",
}


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


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server has: weights at a URL, weights and a data set in repositories of a hub, a set of torchvision."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "files" / "fashion").mkdir(parents=True)
    torch.manual_seed(0)
    draft = folder / "files" / "draft.pth"
    torch.save(torchvision.models.shufflenet_v2_x0_5().state_dict(), draft)
    draft.rename(draft.with_name(f"shufflenet-{hashlib.sha256(draft.read_bytes()).hexdigest()[:8]}.pth"))

    timm = pytest.importorskip("timm")
    repository = folder / "models" / "timm" / "resnet10t.c3_in1k"
    repository.mkdir(parents=True)
    save_file(timm.create_model("resnet10t").state_dict(), repository / "model.safetensors")

    repository = folder / "datasets" / "someone" / "pets"
    (repository / "data").mkdir(parents=True)
    (repository / "README.md").write_text("# Pets\n")
    animals(30).to_parquet(repository / "data" / "train-00000-of-00001.parquet")
    animals(9).to_parquet(repository / "data" / "validation-00000-of-00001.parquet")

    draw = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        images = idx(draw.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        (folder / "files" / "fashion" / f"{part}-images-idx3-ubyte.gz").write_bytes(images)
        labels = idx(np.arange(count, dtype=np.uint8) % 10)
        (folder / "files" / "fashion" / f"{part}-labels-idx1-ubyte.gz").write_bytes(labels)
    return folder


@pytest.fixture
def server(published: Path) -> Iterator[Server]:
    with served(published) as server:
        yield server


class Machine:
    """A user's machine: a home of its own, so that nothing is in any cache, and a network or none."""

    def __init__(self, folder: Path, server: Server, published: Path, network: bool = True) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (weights,) = (published / "files").glob("shufflenet-*.pth")
        home = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "SHUFFLENET": weights.name}
        home |= {"HF_HOME": str(folder / "cache" / "huggingface"), "TORCH_HOME": str(folder / "cache" / "torch")}
        home |= {"HF_ENDPOINT": server.address, "SERVER": server.address} | ({} if network else WITHOUT_NETWORK)
        path = f"{ROOT}:{ROOT / 'tests'}"
        self.environ = {
            **home,
            **network,
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


@pytest.fixture
def login(tmp_path: Path, server: Server, published: Path) -> Machine:
    """With network."""
    return Machine(tmp_path / "login", server, published)


@pytest.fixture
def node(tmp_path: Path, server: Server, published: Path) -> Machine:
    """Without network, and without anything that the other machine has in its home."""
    return Machine(tmp_path / "node", server, published, network=False)


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "MANIFEST.json").read_text())["assets"])


def contents(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("variable", ["both", "timm", "fashion", "packaged"])
def test_what_was_fetched_trains_the_same_without_network(
    variable: str, login: Machine, node: Machine, server: Server, tmp_path: Path
) -> None:
    recipe, assets = f"{RECIPE}:{variable}", tmp_path / "assets"
    refused = node.train(variable, "none")
    assert refused.code == (0 if variable == "packaged" else 2), refused

    fetched = login.run("fetch", recipe, "--to", str(assets))
    assert fetched.code == 0, fetched
    assert not list(login.folder.rglob("*.pth")), "what is fetched goes to the folder, not to a home that has a quota"
    asked = list(server.downloads)
    assert len(asked) == len(set(asked))
    again = login.run("fetch", recipe, "--to", str(assets))
    assert (again.code, server.downloads) == (0, asked), again
    assert again.out.count(" verified") == len(manifest(assets)) > 0

    before = contents(assets)
    for name, facts in ((n, f) for entry in manifest(assets).values() for n, f in entry["files"].items()):
        content = (assets / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (facts["bytes"], facts["sha256"])
    with_network = login.train(variable, "run")
    assert with_network.code == 0, with_network
    asked = list(server.begun)
    without = node.train(variable, "run", "--assets", str(assets))
    assert without.code == 0, without
    assert "verifying " in without.err + without.out
    for kept in ("recipe.json", "metrics.jsonl"):
        assert (login.folder / "run" / kept).read_text() == (node.folder / "run" / kept).read_text()
    one, two = (load_file(machine.folder / "run" / "final" / "model.safetensors") for machine in (login, node))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    planned = node.run("plan", recipe, LAUNCHER_ASSETS=str(assets))
    assert planned.code == 0, planned
    assert contents(assets) == before, "a run writes nothing there"
    assert server.begun == asked
