"""Ranks of tasks that srun started by itself, one for each process, without torchrun or accelerate launch.

Accelerate reads RANK and its companions, not SLURM_PROCID: without them each task would be a run of its own.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping

from launcher.cluster.hostlist import expand_hostlist, tasks_of_nodes
from launcher.errors import UserError

# Steps that nobody started with srun (batch script, interactive shell, ...) have numbers from here on.
FIRST_SPECIAL_STEP = 0xFFFFFFF0
FIRST_PORT, PORTS = 10_000, 20_000
"""First port of a rendezvous, and number of ports.

They lie below the ephemeral range, which begins at 32768 on Linux: any connection may use a port in that range.
"""


def is_task_of_srun(environ: Mapping[str, str]) -> bool:
    """Return whether this process is a task of an srun that a person or a script has written.

    SLURM_* variables alone do not say so: they leak into interactive shells and from batch scripts.
    """
    step = environ.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < FIRST_SPECIAL_STEP and "SLURM_PTY_PORT" not in environ


def ranks_of_tasks(environ: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT from SLURM_*.

    The result is empty for a lone task. MASTER_ADDR and MASTER_PORT are left out if `environ` has them.

    Raises:
        UserError: A SLURM variable is missing or cannot be read.
    """
    num_tasks = environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", "1"))
    if num_tasks == "1":
        return {}
    missing = [name for name in ("SLURM_PROCID", "SLURM_LOCALID") if not environ.get(name, "").isdigit()]
    nodes = environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_JOB_NODELIST", ""))
    if missing or not nodes:
        raise UserError(
            f"srun started {num_tasks} tasks, but {', '.join(missing) or 'SLURM_JOB_NODELIST'} is not set, so they "
            "cannot tell who they are; start them with srun itself, or one accelerate launch on each node "
            "(slurm/train.sbatch)"
        )
    on_nodes = tasks_of_nodes(environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", num_tasks)))
    node = int(environ["SLURM_NODEID"]) if environ.get("SLURM_NODEID", "").isdecimal() else 0
    ranks = {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": num_tasks,
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(on_nodes[node] if node < len(on_nodes) else 1),
    }
    if "MASTER_ADDR" not in environ:
        ranks["MASTER_ADDR"] = address_of(expand_hostlist(nodes)[0])
    if "MASTER_PORT" not in environ:
        ranks["MASTER_PORT"] = str(port_of(environ.get("SLURM_JOB_ID", "0"), environ["SLURM_STEP_ID"]))
    return ranks


def port_of(job: str, step: str) -> int:
    """Return a port of this step's own: the same for all its tasks, and different from that of a job beside it.

    Raises:
        UserError: The job's id is not a number.
    """
    if not job.isdecimal():
        raise UserError(f"SLURM_JOB_ID={job}: must be a whole number, as Slurm sets it; unset it, or set MASTER_PORT")
    return FIRST_PORT + (7 * int(job) + int(step)) % PORTS


def address_of(node: str) -> str:
    """Return an address to which the other nodes can connect.

    It is the node's name if that is a host's name, or else its address in slurm.conf (the two names may differ).

    Raises:
        UserError: The node has no address that can be looked up.
    """
    with contextlib.suppress(OSError):
        socket.getaddrinfo(node, None)
        return node
    if shutil.which("scontrol"):
        words = ["scontrol", "show", "node", node, "-o"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - a name of Slurm's own
        if match := re.search(r"\bNodeAddr=(\S+)", done.stdout):
            return match[1]
    raise UserError(f"the first node, {node}, has no address that can be looked up; set MASTER_ADDR to it before srun")
