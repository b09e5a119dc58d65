"""File systems with little room."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Yield a new folder that is a file system of a size, as mount takes it; skip the test where none can be made."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be made here: mount is not permitted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
