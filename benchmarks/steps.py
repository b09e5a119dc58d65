"""Training speed and memory with fresh pictures in each epoch: this launcher against the loop of PyTorch's tutorial.

    python benchmarks/steps.py --root hymenoptera_data [--rounds 3] [--train last|all] [--model resnet50]

Images a second of a whole epoch, reading included, without validation of the plain loop's and apart from that of this
launcher's; the largest memory of the process that trains. The plain loop runs in its best settings (channels last, a
data worker) and in its defaults. All run in each round, one after the other. With `--train last` the last block and the
head train, nothing is stored; with `--train all` everything does, here on two processes, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


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


def plain(words: argparse.Namespace, *more: str) -> tuple[float, float]:
    command = [sys.executable, "benchmarks/peers/plain.py", "--root", words.root, "--train", words.train]
    command += ["--epochs", str(words.epochs), "--model", words.model, "--no-validation", *more]
    told, memory = run(command)
    return max(json.loads(told)["images_per_second"]), memory


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
        command += [f"freeze_plan.0.epochs={words.epochs}", "--workers", "1", "--run-dir", folder]
        _, memory = run(command)
        rows = map(json.loads, Path(folder, "timing.jsonl").read_text().splitlines())
        return max(row["images_per_second"] for row in rows if "epoch" in row), memory


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train", choices=["last", "all"], default="last")
    parser.add_argument("--model", default="resnet50")
    words = parser.parse_args()
    words.root = str(Path(words.root).absolute())
    ways = {
        "plain, best settings": lambda: plain(words, "--best"),
        "plain, defaults": lambda: plain(words),
        "launcher": lambda: ours(words, 1),
    }
    if words.train == "all":
        ways["launcher, 2 processes"] = lambda: ours(words, 2)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(words.rounds):
        for name, way in ways.items():
            found[name].append(way())
        shown = ", ".join(f"{name} {rows[-1][0]:.1f} images/s {rows[-1][1]:.0f} MB" for name, rows in found.items())
        print(f"round {number + 1}: {shown}", flush=True)
    for name in ways:
        if name != "launcher":
            ratios = [mine[0] / theirs[0] for mine, theirs in zip(found["launcher"], found[name], strict=True)]
            ours_mb, theirs_mb = (statistics.median(row[1] for row in found[way]) for way in ("launcher", name))
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            speed, memory = statistics.median(ratios), ours_mb / theirs_mb
            print(f"launcher / {name}: {speed:.2f} x images/s ({each}), {memory:.2f} x memory")


if __name__ == "__main__":
    main()
