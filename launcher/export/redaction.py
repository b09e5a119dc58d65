"""Text that leaves the machine, without absolute paths of it: they name its users, its disks and its projects."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_PATH = re.compile(r"(?<![\w./:<~*)\]-])/(?:[^\s/\"'<>&:,;|=()\[\]{}]+/)+(?=[^\s/\"'<>&])")
"""The folders of an absolute path; not the rest of an address, nor the end of a tag of HTML."""
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
    """Return text in which what stands below the folders `known` is named from there, and every other absolute path by
    its last piece alone.

    >>> without_paths("root='/home/me/my photos', log /var/log/x.txt, https://a.org/b/c", ["/home/me/my photos"])
    "root='my photos', log x.txt, https://a.org/b/c"
    """
    for folder in sorted({path for path in known if len(path) > 1}, key=len, reverse=True):
        for written in dict.fromkeys((folder, html.escape(folder))):
            text = re.sub(rf"(?<![\w/.~-]){re.escape(written)}/(?=[^\s\"'<>/])", "", text)
            text = re.sub(rf"(?<![\w/.~-]){re.escape(written)}(?![\w-])", Path(written).name, text)
    return _PATH.sub("", text)


def page_without_paths(page: str, known: Iterable[str]) -> str:
    """Return HTML in which all but its script and style, whose hash the page holds, went through `without_paths`."""
    known = list(known)
    pieces = _CODE.split(page)  # text, element, the element's name, text, ...
    return "".join(
        piece if number % 3 == 1 else without_paths(piece, known)
        for number, piece in enumerate(pieces)
        if number % 3 != 2
    )
