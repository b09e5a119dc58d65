"""What stored features cost over the number of images: to compute them, an epoch from them, and memory.

    python benchmarks/size.py --root hymenoptera_data [--times 1,4,16] [--model resnet18]

Ants and bees repeated, the head alone, features on disk. Prints seconds per image, which should stay the same, and the
largest memory of the process, which should not grow.

Seen on 2 cores of an AMD EPYC with ResNet-18: 398, 1133 and 4073 images took 30.9, 28.7 and 27.9 ms each, an epoch from
their features 94, 95 and 77 us an image, and memory was 1138, 1130 and 1161 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--times", default="1,4,16")
    parser.add_argument("--model", default="resnet18")
    words = parser.parse_args()
    print(f"{'images':>8} {'features':>10} {'per image':>10} {'an epoch':>10} {'per image':>10} {'memory':>8}")
    for times in map(int, words.times.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            run_dir = Path(folder, "run")
            command = [sys.executable, "-m", "launcher", "benchmarks/recipes/ants_and_bees.py:repeated"]
            command += [f"data.data.root={Path(words.root).absolute()}", f"data.times={times}"]
            command += [f"backbone.name={words.model}", "--workers", "1", "--run-dir", str(run_dir)]
            environ = {"LAUNCHER_CACHE": str(Path(folder, "cache"))}
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, env=os.environ | environ
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
            features, *epochs = map(json.loads, (run_dir / "timing.jsonl").read_text().splitlines())
            images = features["images"]
            epoch = min(row["seconds"] for row in epochs[1:])
            print(
                f"{images:8} {features['seconds']:8.1f} s {1000 * features['seconds'] / images:7.2f} ms "
                f"{epoch:8.3f} s {1e6 * epoch / images:7.1f} us {usage.ru_maxrss / 1000:5.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
