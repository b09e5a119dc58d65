"""Rows on disk for a phase: shared out over the processes, checked, and computed where they are missing."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object

from launcher.files import POLL_SECONDS, remove_drafts, try_lock, write_json
from launcher.training.feature_cache.build import Builder
from launcher.training.feature_cache.directory import ABOUT
from launcher.training.feature_cache.frozen_part import Frozen
from launcher.training.feature_cache.parts import Part, shards_of
from launcher.training.feature_cache.shards import Shards, blocks_in
from launcher.training.run import Run


def rows_on_disk(run: Run, frozen: Frozen, part: Part, folder: Path) -> Shards:
    """Return the shards of `part`, whole and sound.

    Raises:
        OSError: The disk refuses to store them; raised on all processes.
    """
    accelerator = run.accelerator
    shards = shards_of(part, folder, frozen.layout.row_bytes)
    about = {"images": part.count, "row_bytes": shards.row_bytes, "backbone": repr(run.recipe.backbone)[:200]}
    mine, group = _share_of_disk(run, shards.folder, about)
    _discard_damaged(run, shards, mine, group)
    with _one_run(run, shards.folder.with_suffix(".lock")):
        missing = shards.missing()
        if accelerator.is_local_main_process:
            remove_drafts(shards.folder)
        accelerator.wait_for_everyone()  # no process writes before all have looked
        if max(gather_object([len(missing)])) == 0:
            return shards
        total = blocks_in(sum(len(shards.samples(shard)) for shard in missing))
        builder = Builder(run, frozen.prefix, frozen.layout, part.title, total)
        try:
            refused = builder.on_disk(part.images, shards, part.key_of, missing[mine::group])
        finally:
            builder.close()
        _raise_everywhere(refused)
    return shards


def _raise_everywhere(refused: OSError | None) -> None:
    everyones = gather_object([None if refused is None else (refused.errno, refused.strerror)])
    for error in everyones:
        if error is not None:
            raise OSError(*error)


def _share_of_disk(run: Run, folder: Path, about: dict[str, Any]) -> tuple[int, int]:
    """Return the index of this process among those that see the same disk, and their number.

    These are all processes, or those of its machine. The folder and its description are created first.
    """
    accelerator = run.accelerator
    token = [f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"]
    broadcast_object_list(token)
    refused: OSError | None = None
    try:
        if accelerator.is_local_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / ABOUT, about)
        if accelerator.is_main_process:
            (folder / ".seen").write_text(token[0])
    except OSError as error:
        refused = error
    _raise_everywhere(refused)
    with contextlib.suppress(OSError):
        os.utime(folder / ABOUT)
    sees = (folder / ".seen").exists() and (folder / ".seen").read_text() == token[0]
    everyones = gather_object([(socket.gethostname(), sees)])
    if all(seen for _, seen in everyones):
        return accelerator.process_index, accelerator.num_processes
    here = [index for index, (host, _) in enumerate(everyones) if host == socket.gethostname()]
    return here.index(accelerator.process_index), len(here)


def _discard_damaged(run: Run, shards: Shards, mine: int, group: int) -> None:
    """Discard stored shards whose bytes are not those that were written, so that they are computed again."""
    missing = set(shards.missing())
    damaged = []
    for shard in range(mine, len(shards), group):
        run.watchdog.beat("checking stored features")
        if shard not in missing and not shards.is_sound(shard):
            damaged.append(str(shards.path(shard)))
            shards.discard(shard)
    for path in gather_object(damaged):
        run.screen.line(f"{path}: damaged; computing it again", style="yellow")


@contextlib.contextmanager
def _one_run(run: Run, lock: Path) -> Iterator[None]:
    """Hold `lock`, so that one run computes what several want.

    Raises:
        StoppedError: This run is asked to stop while it waits.
    """
    is_main, release, reported = run.accelerator.is_main_process, None, False
    while run.interruption.anywhere(is_main and (release := try_lock(lock)) is None):
        if not reported:
            run.screen.line("another run is computing these features; waiting for it")
            reported = True
        run.check_in("waiting for another run's features")
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        if release is not None:
            release()
