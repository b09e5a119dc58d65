"""The images that `predict` is asked for: files, folders with all that is below them, and patterns."""

# Path objects for a million files take seconds.
# ruff: noqa: PTH100, PTH112, PTH118, PTH120, PTH122, PTH207

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterator, Sequence

from launcher.data.decoding import SUFFIXES
from launcher.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inputs:
    images: list[str]
    """Each once, in the order in which they were asked for; those of a folder sorted by path."""
    left_out: list[str]
    """Files in folders that are no images by their names. A file that is named itself is always one of `images`."""


def find_images(words: Sequence[str]) -> Inputs:
    """Raises UserError with a line for each word that stands for nothing."""
    images: dict[str, None] = {}
    left_out: dict[str, None] = {}
    problems = []
    for word in words:
        places = [word] if os.path.lexists(word) else _matching(word)
        if not places:
            pattern = glob.has_magic(word)
            problems.append(f"{word}: no file matches it" if pattern else f"{word}: no such file or folder")
            continue
        count = 0
        for place in places:
            try:
                for path in _files_below(place) if os.path.isdir(place) else [place]:
                    wanted = path == place or _is_image(path)
                    (images if wanted else left_out)[path] = None
                    count += wanted
            except OSError as error:
                problems.append(f"{error.filename or place}: cannot be read ({error.strerror or error})")
                break
        else:
            if not count:
                problems.append(f"{word}: no images in it")
    if problems:
        raise UserError(*problems)
    return Inputs(list(images), list(left_out))


def _matching(pattern: str) -> list[str]:
    """Sorted. "**" follows links round in circles; a file is taken by the shortest of its paths."""
    found: dict[tuple[str, str], str] = {}
    for path in sorted(glob.glob(pattern, recursive=True), key=len):
        folder, name = os.path.split(path)
        found.setdefault((os.path.realpath(folder), name), path)
    return sorted(found.values())


def _files_below(folder: str) -> Iterator[str]:
    """Sorted; hidden files and folders are ignored, and links followed but not round in circles."""

    def fail(error: OSError) -> None:
        raise error  # os.walk alone would leave out what it may not read

    for at, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real, parent = os.path.realpath(at), os.path.realpath(os.path.dirname(os.path.abspath(at)))
        if at != folder and f"{parent}/".startswith(f"{real}/"):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield os.path.join(at, name)


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in SUFFIXES
