"""The digits on 1, 2 and 3 nodes of Slurm, with 1 and 2 processes each: what comes of it beside one process alone?

    python benchmarks/slurm_splits.py
    python benchmarks/slurm_splits.py --sgd data.val_fraction=0.5

Trains recipes/digits.py, an epoch of each phase, through slurm/train.sbatch on a cluster of virtual nodes on this
machine (it needs the packages that tests/slurm needs), and by itself on one process. Prints for each split the largest
difference of a weight, what `verify` would say of it, and the metric. AdamW makes rounding grow where a gradient is
almost zero; with --sgd the recipe has SGD as in the README's recipes/parity.py, and weights may differ by rounding
alone: exit code 1 where they do not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from launcher.recipe.loading import load_recipe  # noqa: E402
from launcher.verify.verify import in_words  # noqa: E402
from launcher.verify.weight_equality import compare  # noqa: E402
from slurm_cluster import cluster  # noqa: E402
from slurm_stories import Job  # noqa: E402

SPLITS = [(nodes, processes) for nodes in (1, 2, 3) for processes in (1, 2)]
SHORT = ("freeze_plan.0.epochs=1", "freeze_plan.1.epochs=1", "batch_size=24", "final_weights=last", "--workers", "1")
"""A batch that 1 to 6 processes can share."""
SGD = """import dataclasses

from launcher import optim, phases
from recipes import digits

recipe = dataclasses.replace(
    digits.recipe,
    optim=optim.SGD(lr=0.003),
    freeze_plan=phases.linear_probe(epochs=1) + phases.full_finetune(epochs=1, backbone_lr_scale=0.01),
)
"""


def accuracy(run_dir: Path) -> float:
    return float(json.loads((run_dir / "final/metrics.json").read_text())["accuracy"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sgd", action="store_true", help="SGD in the place of AdamW")
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE")
    options = parser.parse_args()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("nodes x processes", "largest difference", "accuracy", "seconds", "as verify judges it"):
        table.add_column(column, overflow="fold")
    broken = []
    with tempfile.TemporaryDirectory(prefix="splits-") as folder, cluster("--nodes", "3", "--cpus", "2") as slurm:
        recipe = ROOT / "recipes/digits.py"
        if options.sgd:
            recipe = Path(folder, "digits_by_sgd.py")
            recipe.write_text(SGD)
        words = (str(recipe), *SHORT, *options.overrides)
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        alone = Path(folder, "alone")
        command = [sys.executable, "-m", "launcher", *words, "--run-dir", str(alone)]
        begin = time.monotonic()
        subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL)
        table.add_row("one process alone", "", f"{accuracy(alone):.4f}", f"{time.monotonic() - begin:.0f}", "")
        loaded = load_recipe(str(recipe)).recipe
        for nodes, processes in SPLITS:
            place = Path(folder, f"{nodes}x{processes}")
            begin = time.monotonic()
            job = Job(slurm, place, f"--nodes={nodes}", f"--ntasks-per-node={processes}", words=words)
            if job.end()["JobState"] != "COMPLETED":
                print(job.log, file=sys.stderr)
                return 1
            found = compare(alone, job.run_dir, loaded)
            broken += found.broken
            seconds = f"{time.monotonic() - begin:.0f}"
            cells = (f"{found.differences[0].largest:.1e}", f"{accuracy(job.run_dir):.4f}", seconds, in_words(found))
            table.add_row(f"{nodes} x {processes}", *cells)
            print(f"{nodes} x {processes}: {cells}", file=sys.stderr, flush=True)
    Console(highlight=False).print(table)
    return 1 if options.sgd and broken else 0


if __name__ == "__main__":
    sys.exit(main())
