"""Decision about a phase's cache: made once per run, by the main process, and kept when the run is continued."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from launcher.errors import UserError
from launcher.files import write_json
from launcher.text import readable_size
from launcher.training.collectives import from_main
from launcher.training.feature_cache.build import seconds_per_image
from launcher.training.feature_cache.choice import Estimate, Store, choose
from launcher.training.feature_cache.directory import limit_bytes, make_room
from launcher.training.feature_cache.frozen_part import Frozen
from launcher.training.feature_cache.parts import Part, shards_of
from launcher.training.preflight import ResolvedPhase
from launcher.training.run import Run

LOOKED_AT_DISK_BYTES = 16 << 20
MEASURED_IMAGES = 8


def decided(run: Run, resolved: ResolvedPhase, frozen: Frozen, parts: list[Part], folder: Path) -> tuple[Store, str]:
    """Return where a phase's features are stored, and why in a few words.

    The first of these decides: an earlier start of this run; features that are all on disk already, unless the recipe
    says "memory"; the recipe; the measured times.
    """

    def decide() -> tuple[Store, str]:
        before = _recorded(run).get(str(resolved.number))
        if before is not None:
            return before["store"], "as this run began"
        store, why = _new_decision(run, resolved, frozen, parts, folder)
        record(run, resolved, store, why)
        return store, why

    return from_main(run.accelerator, decide)


def _new_decision(
    run: Run, resolved: ResolvedPhase, frozen: Frozen, parts: list[Part], folder: Path
) -> tuple[Store, str]:
    recipe, row_bytes = run.recipe, frozen.layout.row_bytes
    needed = sum(part.count for part in parts) * row_bytes
    if all(not shards_of(part, folder, row_bytes).missing() for part in parts) and recipe.cache != "memory":
        return "disk", "there already"
    free_memory = int(psutil.virtual_memory().available / max(1, run.num_local_processes))
    if recipe.cache == "memory":
        if needed > free_memory:
            raise UserError(
                f"cache='memory': the features of {resolved.phase.name} take {readable_size(needed)} in each process, "
                f"which has {readable_size(free_memory)} free; use cache='disk'"
            )
        return "memory", "as the recipe says"
    limit = limit_bytes()
    has_disk, free_disk = _free(folder)
    fits_limit = make_room(folder, needed, limit)
    if recipe.cache == "disk":
        if not fits_limit or needed > free_disk:
            room = f"LAUNCHER_CACHE_GB allows {readable_size(limit or 0)}" if not fits_limit else "the disk"
            has = "" if not fits_limit else f" has {readable_size(free_disk)} free"
            raise UserError(
                f"cache='disk': the features of {resolved.phase.name} take {readable_size(needed)}, but {room}{has}; "
                f"make room, name another folder by LAUNCHER_CACHE (now {folder}), or use cache='auto'"
            )
        return "disk", "as the recipe says"
    sample = parts[0]
    keys = [sample.key_of(index) for index in range(min(MEASURED_IMAGES, sample.count))]
    seconds = seconds_per_image(sample.images, keys, frozen.prefix, run.accelerator.device, run.num_workers)
    estimate = Estimate(
        passes=resolved.phase.epochs / max(1, resolved.fixed_views or 1),
        images=sum(part.count for part in parts),
        row_bytes=row_bytes,
        seconds_per_image=seconds,
        read_bytes_per_second=_bytes_per_second(folder) if has_disk else 1.0,
        free_disk_bytes=free_disk if fits_limit else 0,
        free_memory_bytes=free_memory,
    )
    store, why = choose(estimate, run.accelerator.num_processes, has_disk)
    if store == "disk":
        why = f"{why}; reading them takes 1/{estimate.times_faster:,.0f} of computing them"
    return store, why


def _recorded(run: Run) -> dict[str, Any]:
    try:
        choices: dict[str, Any] = json.loads((run.rundir.path / "cache.json").read_text())
        return choices
    except FileNotFoundError:
        return {}


def record(run: Run, resolved: ResolvedPhase, store: Store, why: str) -> None:
    """Write the decision down, for a continued run to repeat.

    Stored features are computed in other batches, and rounded differently, than those that are not stored.
    """
    if run.accelerator.is_main_process:
        # Keyed by number: two phases may have the same name.
        decision = {"phase": resolved.phase.name, "store": store, "why": why}
        all_of_them = _recorded(run) | {str(resolved.number): decision}
        write_json(run.rundir.path / "cache.json", all_of_them)


def _free(folder: Path) -> tuple[bool, int]:
    """Return whether the folder can be written to, and how many bytes are free there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # nameless, so that a kill leaves nothing behind
        return True, shutil.disk_usage(folder).free
    except OSError:
        return False, 0


def _bytes_per_second(folder: Path) -> float:
    """Measure how fast the disk takes data, which is about how fast it reads what memory no longer holds."""
    begin = time.perf_counter()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(os.urandom(LOOKED_AT_DISK_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return 1.0
    return LOOKED_AT_DISK_BYTES / (time.perf_counter() - begin)
