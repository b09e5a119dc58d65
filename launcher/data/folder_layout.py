"""Folders that look like classes but are not: splits, folds, and copies of the data set inside itself."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from launcher.data.decoding import SUFFIXES
from launcher.data.names import is_system_folder, nfc, split_named
from launcher.errors import UserError
from launcher.text import listed, one_line

_RUN = ("recipe.json", "environment.json")
_OWN = {
    _RUN: "a run dir",
    ("sweep.json", "journal.log"): "a sweep",
    ("manifest.json", "train.index.npy"): "a prepared copy",
}
"""Files by which launcher's own folders are recognised."""
OF_A_RUN = ("checkpoints", "explanation", "final")
"""Folders in a run dir."""

_FOLD = re.compile(r"(fold|split|subset|part|batch|set)[ _-]*\d+", re.IGNORECASE)


def copies_inside(folders: Sequence[Path]) -> list[Path]:
    """Return the folders that contain folders with the names of all the others and no images of their own.

    Archives that were unpacked twice leave such folders: beside "cat" and "dog", a folder "pets" that contains "cat"
    and "dog".
    """
    copies = []
    for folder in folders:
        others = {nfc(other.name) for other in folders if other != folder}
        if len(others) > 1 and others <= _folders_alone(folder):
            copies.append(folder)
    return copies


def made_by_launcher(folder: Path) -> str | None:
    """Return the kind of folder that launcher itself made ("a run dir", "a sweep", ...), or None for any other.

    Such a folder is never a class, although runs are often kept beside the images.
    """
    for names, what in _OWN.items():
        if all((folder / name).exists() for name in names):
            return what
    inner = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                if not entry.is_dir(follow_symlinks=False):  # links may lead round in circles
                    return None  # the first image of a class settles it, without listing a million files
                inner.append(Path(entry))
    return "run dirs" if inner and all(map(made_by_launcher, inner)) else None


def check_layout(field: str, folder: Path, class_folders: Sequence[Path], notes: list[str]) -> None:
    """Raise UserError if the class folders are splits or folds, or hold the real classes; add a note if they may."""
    names = [one_line(sub.name) for sub in class_folders]
    splits = [name for name in names if split_named(name)]
    if len({split_named(name) for name in splits}) > 1 or len(splits) == len(names) == 1:
        raise UserError(
            f"{field}: {folder} has {listed([repr(name) for name in splits])}, by their names splits and not classes, "
            f"but without class folders in them; expected {splits[0]}/<class>/<image>, or a CSV file that gives each "
            "image its class (data.CsvImages)"
        )
    inner = {sub: _folders_alone(sub) for sub in class_folders}
    for sub, inside in inner.items():
        inside_splits = sorted(name for name in inside if split_named(name))
        if len({split_named(name) for name in inside_splits}) > 1:
            raise UserError(
                f"{field}: {sub} holds the splits {listed([repr(name) for name in inside_splits])}; "
                + (f"give that folder: {field}={sub}" if len(names) == 1 else "expected train/<class>/<image>")
            )
    first = sorted(inner[class_folders[0]]) if class_folders else []
    if len(first) < 2 or any(set(first) != inside for inside in inner.values()):
        return
    shown = listed([repr(one_line(name)) for name in first])
    if len(names) == 1:
        raise UserError(
            f"{field}: {folder} has one class folder, {names[0]!r}, which holds {len(first)} folders ({shown}); if "
            f"these are the classes, give {field}={class_folders[0]}"
        )
    if all(map(_FOLD.fullmatch, names)):
        raise UserError(
            f"{field}: {listed([repr(name) for name in names])} in {folder} are parts of a data set, not classes: each "
            f"holds the folders {shown}; give one of them ({field}={class_folders[0]}), or name two of them train and "
            "val"
        )
    notes.append(
        f"each of the {len(names)} class folders of {one_line(str(folder))} holds the same folders {shown}; if these "
        f"are the classes, give one folder: {field}={one_line(str(class_folders[0]))}"
    )


def _folders_alone(folder: Path) -> set[str]:
    """Return the names of the folders in a folder, or an empty set if it also has images of its own."""
    names = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if not is_system_folder(entry.name):
                    names.add(nfc(entry.name))
            elif not entry.name.startswith(".") and Path(entry.name).suffix.lower() in SUFFIXES:
                return set()
    return names
