"""The hardware of this machine, found without torch, as importing it takes seconds."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import subprocess
from typing import Literal

from launcher.text import plural
from launcher.training.launch import usable_cpus

SECONDS = 10.0
"""The time that nvidia-smi may take; on a machine at rest, it has to wake the driver first."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """The hardware that a recipe is chosen for."""

    gpus: int
    gpu_name: str
    """The name of the first GPU; empty for one that is not on this machine."""
    gpu_gigabytes: float | None
    """The memory of the smallest GPU; None if it is unknown."""
    cpus: int

    def start(self) -> list[str]:
        """Return the words before a recipe's file that train it on all GPUs; `python -m launcher` for one or none."""
        if self.gpus <= 1:
            return ["python", "-m", "launcher"]
        return ["accelerate", "launch", "--multi_gpu", "--num_processes", str(self.gpus), "-m", "launcher"]

    def __str__(self) -> str:
        cores = plural(self.cpus, "CPU core")
        if not self.gpus:
            return f"no GPU, {cores}"
        if not self.gpu_name:
            return "a GPU"
        memory = f" with {self.gpu_gigabytes:.0f} GB" if self.gpu_gigabytes else ""
        return f"{self.gpus} x {self.gpu_name}{memory}, {cores}"


def machine(asked: Literal["here", "cpu", "gpu"] = "here") -> Machine:
    """Return this machine: "cpu" leaves its GPUs out, "gpu" assumes one if there is none, as on a login node."""
    cpus = usable_cpus()
    hardware = _none(cpus) if asked == "cpu" else _nvidia(cpus) or _others(cpus) or _none(cpus)
    return Machine(1, "", None, cpus) if asked == "gpu" and not hardware.gpus else hardware


def _none(cpus: int) -> Machine:
    return Machine(0, "", None, cpus)


def _nvidia(cpus: int) -> Machine | None:
    program = shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None or visible in ("", "-1", "NoDevFiles"):
        return None
    words = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=True)  # noqa: S603
        lines = [line.rpartition(",") for line in done.stdout.splitlines() if "," in line]
        gpus = [(name.strip(), float(mebibytes) / 1024) for name, _, mebibytes in lines]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if visible is not None:
        gpus = gpus[: len(visible.split(","))]
    return Machine(len(gpus), gpus[0][0], min(size for _, size in gpus), cpus) if gpus else None


def _others(cpus: int) -> Machine | None:
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return Machine(1, "Apple GPU", None, cpus)
    if shutil.which("rocm-smi") and os.path.exists("/dev/kfd"):  # noqa: PTH110
        return Machine(1, "AMD GPU", None, cpus)
    return None
