"""Training speed and memory with fresh pictures in each epoch: this launcher against the loops of others.

    python benchmarks/steps.py --root hymenoptera_data [--rounds 3] [--train last|all] [--model resnet50]
        [--peers timm,fastai,hf] [--bf16] [--best-only]

Images a second of an epoch's training, reading included, and the largest memory of the process that trains and
validates after each epoch. The plain loop of PyTorch's tutorial, and each of `--peers`
(see benchmarks/peers/), runs in its best settings on a CPU (channels last, a data worker) and in its defaults. All run
in each round, one after the other, so that a drift of the machine's speed falls on all. With `--train last` the last
block and the head train, nothing is stored; with `--train all` everything does, here on two processes, too. All compute
in float32, or with `--bf16` this launcher and the best settings of all others in bfloat16; how many times as fast the
processor multiplies matrices in bfloat16 is told then.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]

# The package that each peer needs beyond this launcher's own.
PEERS = {"timm": "timm", "fastai": "fastai", "hf": "transformers"}


def run(command: list[str]) -> tuple[str, float]:
    """Standard output, and the largest memory of the process in MB."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
        output.seek(0)
        return output.read(), usage.ru_maxrss / 1000


def theirs(words: argparse.Namespace, script: str, *more: str) -> tuple[float, float]:
    command = [sys.executable, f"benchmarks/peers/{script}.py", "--root", words.root, "--train", words.train]
    command += ["--epochs", str(words.epochs), "--model", words.model, *more]
    output, memory = run(command)
    return max(json.loads(output)["images_per_second"]), memory


def ours(words: argparse.Namespace, processes: int) -> tuple[float, float]:
    recipe = {"last": "partly", "all": "everything"}[words.train]
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), "-m", "launcher"]
        command += [
            f"benchmarks/recipes/ants_and_bees.py:{recipe}",
            f"data.root={words.root}",
            f"backbone.name={words.model}",
        ]
        command += [f"freeze_plan.0.epochs={words.epochs}", "--workers", "1", "--run-dir", folder, "--no-report"]
        command += ["mixed_precision=bf16"] if words.bf16 else []
        _, memory = run(command)
        rows = map(json.loads, Path(folder, "timing.jsonl").read_text().splitlines())
        return max(row["images_per_second"] for row in rows if "epoch" in row), memory


def gain_of_bf16() -> float:
    """How many times as fast matrices are multiplied in bfloat16 as in float32; the median of 5 pairs."""
    import torch

    pairs = [torch.randn(2, 2048, 2048, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]

    def seconds(one: torch.Tensor, other: torch.Tensor) -> float:
        begin = time.perf_counter()
        for _ in range(5):
            one @ other
        return time.perf_counter() - begin

    ratios = [seconds(*pairs[0]) / seconds(*pairs[1]) for _ in range(6)]
    return statistics.median(ratios[1:])


def named(listed: str) -> list[str]:
    names = [name for name in listed.split(",") if name]
    if unknown := set(names) - set(PEERS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not of {', '.join(PEERS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train", choices=["last", "all"], default="last")
    parser.add_argument("--model", choices=["resnet18", "resnet50"], default="resnet50")
    parser.add_argument("--peers", type=named, default=[], help="of timm, fastai and hf, with commas between them")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--best-only", action="store_true", help="no defaults but the plain loop's")
    words = parser.parse_args()
    words.root = str(Path(words.root).absolute())
    missing = [PEERS[name] for name in words.peers if importlib.util.find_spec(PEERS[name]) is None]
    if missing:
        print(f"{' and '.join(missing)} missing: pip install -e '.[bench]'", file=sys.stderr)
        raise SystemExit(2)

    ways: dict[str, Callable[[], tuple[float, float]]] = {}
    for name, script in {"plain": "plain", **{name: f"{name}_loop" for name in words.peers}}.items():
        ways[f"{name}, best settings"] = partial(theirs, words, script, "--best", *["--bf16"] * words.bf16)
        if name == "plain" or not words.best_only:
            ways[f"{name}, defaults"] = partial(theirs, words, script)
    ways["launcher"] = partial(ours, words, 1)
    if words.train == "all":
        ways["launcher, 2 processes"] = partial(ours, words, 2)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(words.rounds):
        for name, way in ways.items():
            found[name].append(way())
        shown = ", ".join(f"{name} {rows[-1][0]:.1f} images/s {rows[-1][1]:.0f} MB" for name, rows in found.items())
        print(f"round {number + 1}: {shown}", flush=True)
    middle = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    for name, (speed, memory) in middle.items():
        print(f"{name}: {speed:.1f} images/s, {memory:.0f} MB")
    for name in ways:
        if name != "launcher":
            ratios = [mine[0] / others[0] for mine, others in zip(found["launcher"], found[name], strict=True)]
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            memory = middle["launcher"][1] / middle[name][1]
            print(f"launcher / {name}: {statistics.median(ratios):.2f} x images/s ({each}), {memory:.2f} x memory")
    if words.bf16:
        print(f"matrices in bfloat16: {gain_of_bf16():.2f} x as fast as in float32 on this processor")


if __name__ == "__main__":
    main()
