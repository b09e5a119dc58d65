"""Bringing weights and data sets into one folder: each once, whole or not at all, whatever interrupts it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from disks import small_disk
from launcher.assets.download import download
from machines import RECIPE, Machine, contents, manifest
from weight_server import Server


@pytest.mark.long
@pytest.mark.parametrize("variable", ["both", "timm_and_fashion"])
def test_killed_at_any_moment_and_repeated(variable: str, login: Machine, server: Server, tmp_path: Path) -> None:
    assets, recipe = tmp_path / "assets", f"{RECIPE}:{variable}"
    server.seconds_a_chunk = 0.05
    killed = 0
    digests: dict[str, str] = {}
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
        assert listed <= there
        # A kill between the renames and the manifest leaves files that no run uses yet; they must be whole, too.
        digests |= {name: hashlib.sha256((assets / name).read_bytes()).hexdigest() for name in there - listed}
        for name, facts in ((n, f) for entry in manifest(assets).values() for n, f in entry["files"].items()):
            assert hashlib.sha256((assets / name).read_bytes()).hexdigest() == facts["sha256"]
    assert killed >= 1
    server.seconds_a_chunk = 0.0
    done = login.run("fetch", recipe, "--to", str(assets))
    assert done.code == 0, done
    assert len(manifest(assets)) == 2
    final = {name: facts["sha256"] for entry in manifest(assets).values() for name, facts in entry["files"].items()}
    assert digests.items() <= final.items(), "a half file under a final name"
    assert not (assets / ".partial").exists()


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.slow
def test_paths_of_ones_own_stay_where_they_are(login: Machine, tmp_path: Path) -> None:
    recipe = f"{RECIPE}:own_paths"
    (login.folder / "pets").mkdir()
    fetched = login.run("fetch", recipe, "--to", "assets")
    assert fetched.code == 0, fetched
    here = f"your own, stays where it is: {login.folder}"
    assert fetched.out.splitlines()[:2] == [
        f"backbone.weights='mine/weights.pth': {here}/mine/weights.pth (not there)",
        f"data.root='pets': {here}/pets",
    ]
    assert fetched.out.splitlines()[2].startswith("nothing to fetch: ")
    assert manifest(login.folder / "assets") == {}


@pytest.mark.slow
def test_a_full_disk(login: Machine, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "3m") as disk:
        refused = login.run("fetch", f"{RECIPE}:weights", "--to", str(disk))
        assert (refused.code, refused.err) == (
            2,
            "error: backbone.weights='DEFAULT': ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1 has 5.6 MB, and "
            f"{disk} has 3.1 MB free; make room, or give another folder (--to)\n",
        )
        # A library that finds out while it writes.
        refused = login.run("fetch", f"{RECIPE}:packaged", "--to", str(disk))
        assert refused.code == 2
        (line,) = refused.err.splitlines()
        assert line.startswith(f"error: --to {disk}: cannot write ")
        assert "(No space left on device); make room, or give another folder" in line
        assert manifest(disk) == {}


@pytest.mark.long
def test_progress_is_lines_in_a_file_and_a_bar_on_a_terminal(login: Machine, server: Server, tmp_path: Path) -> None:
    server.seconds_a_chunk = 0.15  # 13 s for the 86 chunks
    process = login.start("fetch", f"{RECIPE}:weights", "--to", str(tmp_path / "lines"))
    _, err = process.communicate()
    assert re.fullmatch(r"(ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1: [1-5]\.\d MB of 5\.6 MB\n)+", err)

    server.seconds_a_chunk = 0.03
    ours, theirs = pty.openpty()
    environ = os.environ | login.environ | {"TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-m", "launcher", "fetch", f"{RECIPE}:weights", "--to", str(tmp_path / "bar")]
    process = subprocess.Popen(command, cwd=login.folder, env=environ, stdout=subprocess.DEVNULL, stderr=theirs)  # type: ignore[assignment]
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(ours, 4096):
            shown += part
    assert process.wait() == 0
    os.close(ours)
    assert re.search(rb"\d\.\d/5\.6 MB", shown), shown
    assert b"MB/s" in shown


def test_a_connection_that_ends_too_early_leaves_no_file(server: Server, published: Path, tmp_path: Path) -> None:
    """To urllib it looks like the end of the file, and a file without a hash in its name would pass."""
    (published / "files" / "plain.pth").write_bytes(bytes(200_000))
    server.cut_after = 2
    with pytest.raises(OSError, match=r"the connection ended after 131,072 of 200,000 bytes"):
        download(f"{server.address}/files/plain.pth", tmp_path / "plain.pth")
    assert list(tmp_path.iterdir()) == []
    server.cut_after = None
    download(f"{server.address}/files/plain.pth", tmp_path / "plain.pth")
    assert (tmp_path / "plain.pth").stat().st_size == 200_000


@pytest.mark.long
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
    assert done.out.splitlines()[:2] == [
        f"{name} does not say what it needs (it has no method 'assets')"
        for name in ("backbone: TinyBackbone", "data: StripeData")
    ]
    assert done.out.splitlines()[2].startswith("nothing to fetch: ")
    planned = node.run("plan", nothing, "--assets", str(tmp_path / "nothing"))
    assert planned.code == 0, planned
