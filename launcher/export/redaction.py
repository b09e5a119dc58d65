"""Removal of absolute paths from text that leaves the machine: they name its users, its disks and its projects."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_PATH = re.compile(r"(?<![\w./:<~*)\]-])/(?:[^\s/\"'<>&:,;|=()\[\]{}]+/)+(?=[^\s/\"'<>&])")
"""Pattern of the folders of an absolute path, but not of the rest of a URL, nor of the end of an HTML tag."""
_CODE = re.compile(r"(<(script|style)\b.*?</\2>)", re.DOTALL)


def absolute_paths(value: Any) -> Iterator[str]:
    """Yield all texts in a JSON value that are absolute paths."""
    if isinstance(value, str):
        if value.startswith("/") and len(value) > 1:
            yield value.rstrip("/")
    elif isinstance(value, dict):
        for item in value.values():
            yield from absolute_paths(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from absolute_paths(item)


def without_paths(text: str, known: Iterable[str]) -> str:
    """Return text without absolute paths.

    Paths below one of the folders `known` become relative to it, and every other absolute path is cut to its last
    piece.

    >>> without_paths("root='/home/me/my photos', log /var/log/x.txt, https://a.org/b/c", ["/home/me/my photos"])
    "root='my photos', log x.txt, https://a.org/b/c"
    """
    for folder in sorted({path for path in known if len(path) > 1}, key=len, reverse=True):
        for written in dict.fromkeys((folder, html.escape(folder))):
            text = re.sub(rf"(?<![\w/.~-]){re.escape(written)}/(?=[^\s\"'<>/])", "", text)
            text = re.sub(rf"(?<![\w/.~-]){re.escape(written)}(?![\w-])", Path(written).name, text)
    return _PATH.sub("", text)


def page_without_paths(page: str, known: Iterable[str]) -> str:
    """Apply `without_paths` to a page of HTML, except to its script and style, whose hashes the page holds."""
    known = list(known)
    pieces = _CODE.split(page)  # text, element, the element's name, text, ...
    return "".join(
        piece if number % 3 == 1 else without_paths(piece, known)
        for number, piece in enumerate(pieces)
        if number % 3 != 2
    )
