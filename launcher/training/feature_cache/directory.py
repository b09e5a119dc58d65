"""The folder that holds stored features, for all runs of a user: where it is, how large it may get, what goes first."""

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
"""What was used so lately is never cleaned away to make room."""


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """$LAUNCHER_CACHE, or launcher/ in the user's folder for caches. Raises UserError where the user has no home."""
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
    """$LAUNCHER_CACHE_GB, the most that stored features may take together. Raises UserError."""
    text = environ.get("LAUNCHER_CACHE_GB")
    if not text:
        return None
    with contextlib.suppress(ValueError):
        if (gigabytes := float(text)) >= 0:
            return int(gigabytes * 1e9)
    raise UserError(f"LAUNCHER_CACHE_GB={text}: must be a number of gigabytes, such as 50")


@dataclasses.dataclass(frozen=True)
class Entry:
    """The stored features of one split in one view."""

    path: Path
    about: Mapping[str, Any]
    bytes: int
    used: float
    """Unix time of the last use, in seconds."""


def entries(folder: Path) -> list[Entry]:
    """What is stored, from the longest unused to the last used."""
    found = []
    for about in (folder / "features").glob(f"*/{ABOUT}"):
        with contextlib.suppress(OSError, ValueError):
            size = sum(file.stat().st_size for file in about.parent.iterdir())
            found.append(Entry(about.parent, json.loads(about.read_text()), size, about.stat().st_mtime))
    return sorted(found, key=lambda entry: entry.used)


def remove(entry: Entry) -> None:
    """Forget stored features. A run that reads them goes on: their files stay until it closes them."""
    # Renamed first: what is being removed must not look like something whole with a part missing.
    doomed = entry.path.with_name(f".{entry.path.name}.removed-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        entry.path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def make_room(folder: Path, needed: int, limit: int | None) -> bool:
    """Whether `needed` bytes more stay within `limit`, after the longest unused entries have gone where they must."""
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
