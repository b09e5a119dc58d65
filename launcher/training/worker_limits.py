"""The shared memory and open files that data workers need to hand over batches, checked before training."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from launcher.errors import UserError
from launcher.text import plural, readable_size
from launcher.training.failures import OPEN_FILES_CURE, SHARED_MEMORY, SHARED_MEMORY_CURE
from launcher.training.images import TrainingImages
from launcher.training.preflight import Prepared

READ_AHEAD = 2
"""Number of batches that torch lets each data worker read ahead (`prefetch_factor`)."""
FILES_OF_WORKER = 4
"""Open files of the training process per data worker: two ends of its queue, its sentinel, and one to spare."""
FILES_OF_BATCH = 3
"""Open files per batch: one each to hand over images, targets and indices."""
FILES_OF_RUN = 32
"""Number of other files that a run opens, with some to spare: checkpoints, logs, results, sockets."""


def shared_memory_needed(prepared: Prepared, num_workers: int, num_local_processes: int = 1) -> int:
    """Return the bytes of all batches in a machine's shared memory at once.

    These are the batches that the workers have read ahead, and the one in use.
    """
    if num_workers == 0:
        return 0
    recipe, train = prepared.recipe, prepared.splits.train
    images = TrainingImages(train, recipe.augment.build(prepared.preprocessing), recipe.seed)
    batches = min(READ_AHEAD * num_workers + 1, -(-len(train) // prepared.batching.micro_batch_size))
    size = min(prepared.batching.micro_batch_size, len(train))
    return images[0, 0][0].nbytes * size * batches * num_local_processes


def shared_memory_problem(prepared: Prepared, num_workers: int, num_local_processes: int = 1) -> str | None:
    """Return why /dev/shm is too small for the data workers and what would help, or None if it is large enough."""
    try:
        there = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    free, needed = there.f_bavail * there.f_frsize, shared_memory_needed(prepared, num_workers, num_local_processes)
    if needed <= free:
        return None
    workers = plural(num_workers, "data worker")
    each = f" in each of {num_local_processes} processes" if num_local_processes > 1 else ""
    need = "needs" if num_workers == num_local_processes == 1 else "need"
    return (
        f"{SHARED_MEMORY}: {readable_size(free)} are free, and {workers}{each} {need} {readable_size(needed)} to hand "
        f"their batches over; {SHARED_MEMORY_CURE}"
    )


def check_handover(prepared: Prepared, num_workers: int, num_local_processes: int) -> None:
    """Raise the limit of open files to the number that the data workers need.

    Raise UserError if the limit cannot be raised far enough, or if shared memory is too small.
    """
    if num_workers == 0:
        return
    problems = []
    if problem := shared_memory_problem(prepared, num_workers, num_local_processes):
        problems.append(problem)
    needed = _open_files() + FILES_OF_RUN + 2 * FILES_OF_WORKER * num_workers  # loaders of training and of validation
    needed += FILES_OF_BATCH * (READ_AHEAD * num_workers + 1)
    allowed = _raised_limit(needed)
    if allowed is not None and allowed < needed:
        problems.append(
            f"ulimit -n: {allowed} files may be open, and "
            f"{plural(num_workers, 'data worker needs', 'data workers need')} {needed}; {OPEN_FILES_CURE}"
        )
    if problems:
        raise UserError(*problems)


def _open_files() -> int:
    with contextlib.suppress(OSError):
        return sum(1 for _ in Path("/proc/self/fd").iterdir())
    return 0


def _raised_limit(needed: int) -> int | None:
    """Raise the soft limit of open files if it is too low and the hard limit allows it.

    Return the resulting limit, or None if the present one is high enough or there is none.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return None
    if hard == resource.RLIM_INFINITY or hard > soft:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            return raised
    return soft
