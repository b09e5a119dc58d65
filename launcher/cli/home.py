"""A home folder for a user without one, as in containers that are started under a bare user id."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from launcher.errors import UserError


def settle_home(environ: MutableMapping[str, str] = os.environ) -> str | None:
    """Set HOME to a temporary folder if the user has no home, and return a line that says so, or None.

    Libraries look for a home, too: without one they fail, or write to a folder named "~". Raises UserError if the
    folder cannot be made.
    """
    with contextlib.suppress(RuntimeError):
        Path.home()
        return None
    user = os.getuid()
    folder = Path(tempfile.gettempdir()) / f"launcher-home-{user}"
    why = f"no home folder: HOME is not set, and user id {user} has no entry in /etc/passwd"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.lstat().st_uid
    except OSError as error:
        raise UserError(f"{why}; set HOME ({folder} cannot be made: {error.strerror})") from error
    if folder.is_symlink() or owner != user:
        raise UserError(f"{why}; set HOME ({folder} is another user's)")
    environ["HOME"] = str(folder)
    environ.setdefault("USER", str(user))  # torch asks for the user's name when it compiles
    return f"{why}; caches and downloads go to {folder}. Set HOME, or LAUNCHER_CACHE, to keep them elsewhere"
