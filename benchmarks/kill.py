"""kill -9 at random moments, many times: does a run always end to the bit like the unbroken one?

    python benchmarks/kill.py --kills 50
    python benchmarks/kill.py --events

Trains the recipe of tests/support/slow_steps.py (dropout, AdamW, averaged weights, two phases, saves in mid-epoch, a
data worker) on one process and on two; kills all its processes at random moments and starts it again until the kills
are used up. Prints a line for each run, and ends with exit code 1 at the first difference.

With --events a run is killed at each of its file events instead, on one process and on two, with the feature cache off
and on the disk, and the whole run dir is compared (tests/support/kill_server.py); --every 5 takes each fifth.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from launcher.verify.kills import launch_command, run_with_kills

ROOT = Path(__file__).parents[1]
SUPPORT = ROOT / "tests/support"
RECIPE = str(SUPPORT / "slow_steps.py")
KILLS_OF_A_RUN = 5
SECONDS_OF_A_RUN = 3.5


def differing(one: Path, other: Path) -> list[str]:
    """Which of weights, averaged weights and metrics are not the same to the bit."""
    found = []
    for name in ("final/model.safetensors", "checkpoints/step-000012/ema.safetensors"):
        ours, theirs = load_file(one / name), load_file(other / name)
        found += [f"{name}: {key}" for key in theirs if not torch.equal(ours[key], theirs[key])]
    if (one / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes():
        found.append("metrics.jsonl")
    return found


def at_events(every: int) -> int:
    failed = 0
    for processes in (1, 2):
        for cache in ("off", "disk"):
            with tempfile.TemporaryDirectory() as folder:
                print(f"processes: {processes}, cache={cache}", flush=True)
                words = [str(SUPPORT / "kill_server.py"), folder, str(SUPPORT / "tiny.py"), str(every)]
                command = [sys.executable, *words, str(processes), f"cache={cache}"]
                failed |= subprocess.run(command, check=False).returncode
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="over all runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--events", action="store_true", help="at each file event, not at random moments")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of the events, between beginning and end")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{ROOT}:{SUPPORT}"
    if options.events:
        return at_events(options.every)
    draw = random.Random(options.seed)
    done = 0
    with tempfile.TemporaryDirectory() as folder:
        whole = {}
        for processes in (1, 2):
            whole[processes] = Path(folder) / f"whole-{processes}" / "run"
            whole[processes].parent.mkdir()
            command = launch_command(RECIPE, whole[processes], "--workers", "1", processes=processes)
            subprocess.run(command, check=True, capture_output=True)
        number = 0
        while done < options.kills:
            processes = 1 + number % 2
            run_dir = Path(folder) / f"cut-{number}" / "run"
            run_dir.parent.mkdir()
            command = launch_command(RECIPE, run_dir, "--workers", "1", processes=processes)
            kills = run_with_kills(
                command,
                run_dir,
                kills=min(KILLS_OF_A_RUN, options.kills - done),
                longest_seconds=SECONDS_OF_A_RUN,
                draw=draw,
                log=run_dir.parent / "log.txt",
            )
            done, number = done + len(kills), number + 1
            bad = differing(run_dir, whole[processes])
            at = ", ".join(f"{kill.after_seconds} s at {kill.newest}" for kill in kills)
            print(f"run {number} on {processes}: killed {len(kills)} times ({at}): {bad or 'the same'}", flush=True)
            if bad:
                return 1
    print(f"{done} kills in {number} runs; every run ended to the bit like the unbroken one")
    return 0


if __name__ == "__main__":
    sys.exit(main())
