"""Training with most of a network frozen: this launcher against the loop of PyTorch's transfer-learning tutorial.

    python benchmarks/frozen.py --root hymenoptera_data [--runs 3] [--epochs 20] [--plain-epochs 3] [--bf16]

ResNet-50 with random weights (they take as long as others), ants and bees at 224 px, batches of 32, validation after
each epoch; whole commands, start-up included. The head alone: from nothing, and with the features of an earlier run.
The last block and the head. In each round all commands run, one after the other, so that a drift of the machine's
speed falls on all. The plain loop, in its best settings (channels last, a data worker, with `--bf16` autocast; then
this launcher computes in bfloat16, too), does `--plain-epochs` epochs, and its start and its epochs are drawn out to
`--epochs`: they all cost the same.

Seen on 2 cores of an AMD EPYC that has instructions for bfloat16, with `--bf16 --plain-epochs 1`, medians of 3 rounds:
the head 10.9 times as fast from nothing (28 s) and 30 times with the features of an earlier run (11 s), an epoch after
the first 437 times (0.039 against 16 s); the last block and the head 3.0 times (131 s, two
rounds). In float32, on another such machine, one round: 13.8, 49, 913 and 3.0 times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def plain(words: argparse.Namespace, trained: str) -> float:
    """Seconds of the whole command for so many epochs."""
    script = ROOT / "benchmarks" / "peers" / "plain.py"
    options = ["--root", words.root, "--train", trained, "--epochs", str(words.plain_epochs), "--best"]
    options += ["--bf16"] * words.bf16
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, script, *options], check=True, capture_output=True, text=True)
    whole = time.perf_counter() - begin
    epochs = json.loads(done.stdout)["epochs"]
    return whole - sum(epochs) + statistics.mean(epochs) * words.epochs


def ours(words: argparse.Namespace, recipe: str, cache: Path) -> tuple[float, float]:
    """Seconds of the whole command, and of an epoch after the first."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "launcher",
            f"benchmarks/recipes/ants_and_bees.py:{recipe}",
            f"data.root={words.root}",
        ]
        command += [f"freeze_plan.0.epochs={words.epochs}", "--run-dir", str(Path(folder, "run")), "--workers", "1"]
        command += ["mixed_precision=bf16"] * words.bf16
        begin = time.perf_counter()
        subprocess.run(
            command, check=True, capture_output=True, cwd=ROOT, env=os.environ | {"LAUNCHER_CACHE": str(cache)}
        )
        whole = time.perf_counter() - begin
        rows = map(json.loads, Path(folder, "run", "timing.jsonl").read_text().splitlines())
        epochs = [row["seconds"] for row in rows if "epoch" in row]
    return whole, statistics.median(epochs[1:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--plain-epochs", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    words = parser.parse_args()
    words.root = str(Path(words.root).absolute())
    rows: dict[str, list[float]] = {}
    for number in range(words.runs):
        with tempfile.TemporaryDirectory() as cache:
            head, last = plain(words, "head"), plain(words, "last")
            cold, epoch = ours(words, "head", Path(cache))
            warm, warm_epoch = ours(words, "head", Path(cache))
            block, _ = ours(words, "last_block", Path(cache))
        plain_epoch = head / words.epochs
        ratios = {
            "head, nothing stored": head / cold,
            "head, features stored": head / warm,
            "head, an epoch after the first": plain_epoch / min(epoch, warm_epoch),
            "last block and head": last / block,
        }
        print(
            f"round {number + 1}: plain {head:.0f} and {last:.0f} s; this launcher {cold:.1f}, {warm:.1f} and "
            f"{block:.0f} s; epochs {plain_epoch:.1f} against {epoch:.3f} s",
            flush=True,
        )
        for name, ratio in ratios.items():
            rows.setdefault(name, []).append(ratio)
    for name, found in rows.items():
        print(f"{name:32} {statistics.median(found):8.1f} x   ({', '.join(f'{ratio:.1f}' for ratio in found)})")


if __name__ == "__main__":
    main()
