"""Comparison of names: names of splits, system folders, and Unicode forms, by the same rules everywhere."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal

from launcher.text import plural

SplitName = Literal["train", "val", "test"]

_SPLIT_WORDS: dict[SplitName, str] = {
    "train": "train|training|trn",
    "val": "val|valid|validation|validate|dev|devel|development|eval|evaluation",
    "test": "test|testing|tst|hold[ _-]?out",
}
_MISSING = frozenset(("nan", "na", "n/a", "#n/a", "<na>", "none", "null", "nil", "nat"))
_AFTER_SPLIT = r"([ _-]?(set|data|dataset|split|images|imgs))?"

_SYSTEM_FOLDERS = frozenset(
    (
        *("@eadir", "#recycle", "@recycle", "#snapshot", "@sharebin", "@tmp", "@recently-snapshot"),  # network storage
        *("$recycle.bin", "recycler", "system volume information", "thumbs"),  # Windows
        *("__macosx", "lost+found", "lost.dir", "__pycache__"),
    )
)


def split_named(name: str) -> SplitName | None:
    """Return the split that the name of a folder, file or cell stands for: "Training_Set" is train, "dev" is val.

    >>> [split_named(name) for name in ("train", "Test Set", "dev", "trains")]
    ['train', 'test', 'val', None]
    """
    text = name.strip().lower()
    return next(
        (split for split, words in _SPLIT_WORDS.items() if re.fullmatch(f"({words}){_AFTER_SPLIT}", text)), None
    )


def is_system_folder(name: str) -> bool:
    """Return whether a folder is hidden or made by a system (thumbnails, recycle bins), and thus never a class."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def nfc(text: str) -> str:
    """Return text in Unicode's composed form: macOS writes "é" as two characters, most other systems as one."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def in_list(name: str, names: Sequence[str]) -> str | None:
    """Return the item of `names` that equals `name` in any Unicode form, or None."""
    return name if name in names else next((item for item in names if nfc(item) == nfc(name)), None)


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return groups of names that differ only in case, spacing, invisible characters or the notation of a number.

    An example of such a group is ("Red", "red").
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_plain(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def notes_of_names(names: Iterable[str]) -> list[str]:
    """Return lines on names that are likely the same class or label, and on names that likely mean a missing label."""
    names = list(names)
    notes = []
    if groups := [" and ".join(map(repr, group)) for group in alike(names)]:
        others = f" and {plural(len(groups) - 3, 'more such group')}" if len(groups) > 3 else ""
        notes.append(
            f"{'; '.join(groups[:3])}{others} count as different: make their spelling one where the same is meant"
        )
    if missing := [repr(name) for name in names if name.strip().casefold() in _MISSING]:
        words = "counts as a class" if len(missing) == 1 else "count as classes"
        notes.append(f"{', '.join(missing)} {words}: leave those images out where it means that there is no label")
    return notes


def _plain(name: str) -> str:
    seen = "".join(sign for sign in name if sign.isspace() or unicodedata.category(sign) not in ("Cc", "Cf"))
    text = " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFKC", seen).casefold().strip()))
    try:
        return f"{float(text):g}" if re.fullmatch(r"[+-]?\d{1,15}(\.\d*)?", text) else text
    except ValueError:
        return text
