"""The evaluate command in a process of its own, and what it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import tiny
from commands import ROOT, SUPPORT, TINY
from launcher.inference.evaluate import Evaluation, evaluate
from launcher.inference.finished_run import read_finished
from launcher.recipe.type_names import types_in
from launcher.training.launch import Launch, World

ENVIRON = {"PYTHONPATH": f"{ROOT}:{SUPPORT}"}


def evaluated(run_dir: Path, **options: Any) -> Evaluation:
    launch = Launch(run_dir=run_dir, world=World(use_cpu=True, num_cpus=1))
    found = evaluate(read_finished(run_dir, types_in(tiny.recipe)), launch, **options)
    assert found is not None
    return found


def run(run_dir: Path, processes: int, *words: str) -> str:
    command = [sys.executable, "-m", "launcher", "evaluate", str(run_dir), *TINY, "--workers", "0", *words]
    if processes > 1:
        command[1:2] = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    done = subprocess.run(
        command, env=os.environ | ENVIRON, cwd=run_dir.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
