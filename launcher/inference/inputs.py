"""Images given to `predict`: files, folders with everything below them, and patterns."""

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
    """Paths of the images to predict, and of the files that are left out."""

    images: list[str]
    """Images, each once, in the order in which they were given; those of a folder are sorted by path."""
    left_out: list[str]
    """Files in folders that are no images by their names. A file that is given itself is always in `images`."""


def find_images(words: Sequence[str]) -> Inputs:
    """Return the images for which `words` stand; raise UserError with a line for each word that stands for none."""
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
                    taken = path == place or _is_image(path)
                    (images if taken else left_out)[path] = None
                    count += taken
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
    """Return the sorted paths that match a pattern, each file once, by its shortest path.

    "**" follows links even in circles, so it finds a file by several paths.
    """
    paths: dict[tuple[str, str], str] = {}
    for path in sorted(glob.glob(pattern, recursive=True), key=len):
        folder, name = os.path.split(path)
        paths.setdefault((os.path.realpath(folder), name), path)
    return sorted(paths.values())


def _files_below(folder: str) -> Iterator[str]:
    """Yield the files below a folder in sorted order.

    Hidden files and folders are ignored, and links are followed, but not in circles.
    """

    def fail(error: OSError) -> None:
        raise error  # os.walk alone would leave out folders that it may not read

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
