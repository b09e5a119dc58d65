"""Folder of stored features, shared by all runs of a user: its location, size limit, and order of removal."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import UserError
from launcher.files import expanded

ABOUT = "about.json"
IN_USE_SECONDS = 24 * 3600
"""Time since an entry's last use, in seconds, during which it is never removed to make room."""


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for stored features: $LAUNCHER_CACHE, or launcher/ in the user's folder for caches.

    Raises:
        UserError: $LAUNCHER_CACHE is a file, or the user has no home folder.
    """
    if asked := environ.get("LAUNCHER_CACHE"):
        folder = expanded(asked).absolute()
        if folder.exists() and not folder.is_dir():
            raise UserError(f"LAUNCHER_CACHE={asked}: is a file; name a folder")
        return folder
    home = environ.get("XDG_CACHE_HOME")
    if home:
        return Path(home) / "launcher"
    try:
        return Path.home() / ".cache/launcher"
    except RuntimeError as error:
        raise UserError("no home folder to keep stored features in; set LAUNCHER_CACHE to a folder, or HOME") from error


def limit_bytes(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the limit on the size of all stored features in bytes, from $LAUNCHER_CACHE_GB, or None without one.

    Raises:
        UserError: $LAUNCHER_CACHE_GB is not a number of gigabytes.
    """
    text = environ.get("LAUNCHER_CACHE_GB")
    if not text:
        return None
    with contextlib.suppress(ValueError):
        if (gigabytes := float(text)) >= 0:
            return int(gigabytes * 1e9)
    raise UserError(f"LAUNCHER_CACHE_GB={text}: must be a number of gigabytes, such as 50")


@dataclasses.dataclass(frozen=True)
class Entry:
    """Stored features of one split in one view."""

    path: Path
    about: Mapping[str, Any]
    bytes: int
    used: float
    """Unix time of the last use, in seconds."""


def entries(folder: Path) -> list[Entry]:
    """Return the stored entries, the longest unused first."""
    stored = []
    for about in (folder / "features").glob(f"*/{ABOUT}"):
        with contextlib.suppress(OSError, ValueError):
            size = sum(file.stat().st_size for file in about.parent.iterdir())
            stored.append(Entry(about.parent, json.loads(about.read_text()), size, about.stat().st_mtime))
    return sorted(stored, key=lambda entry: entry.used)


def remove(entry: Entry) -> None:
    """Delete stored features; a run that is reading them goes on, as their files stay until it closes them."""
    # Renamed first, so that a half-removed entry never looks like a whole one with shards missing.
    doomed = entry.path.with_name(f".{entry.path.name}.removed-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        entry.path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def make_room(folder: Path, needed: int, limit: int | None) -> bool:
    """Remove the longest unused entries as needed, and return whether `needed` more bytes fit within `limit`.

    Entries used within IN_USE_SECONDS stay.
    """
    if limit is None:
        return True
    stored = entries(folder)
    total = sum(entry.bytes for entry in stored)
    if needed > limit:
        return False
    for entry in stored:
        if total + needed <= limit:
            break
        if time.time() - entry.used > IN_USE_SECONDS:
            remove(entry)
            total -= entry.bytes
    return total + needed <= limit
