"""Pointers of git-lfs: small text files that a clone without git-lfs has in place of the real files."""

from __future__ import annotations

from pathlib import Path

LFS_POINTER = "a git-lfs pointer, not the file itself; run git lfs pull in its repository"
_BEGINNING = b"version https://git-lfs.github.com/spec/"


def is_lfs_pointer(source: Path | bytes) -> bool:
    """Return whether a file, or the content of one, is a pointer; False if it cannot be read."""
    if isinstance(source, bytes):
        return source.startswith(_BEGINNING)
    try:
        with source.open("rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        return False
