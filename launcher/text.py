"""Formatting of values for people."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence


def number(value: float | None) -> str:
    """Return a measured value with at least three significant digits, whatever its size, or "nan" for None.

    >>> [number(value) for value in (0.96384, 12.5, 0.0000123456, 1.7e9, 0.0)]
    ['0.9638', '12.5000', '1.235e-05', '1.7e+09', '0.0000']
    """
    if value is None:
        return "nan"
    return f"{value:.4f}" if value == 0 or 0.01 <= abs(value) < 10_000 else f"{value:.4g}"


def level(value: float, spread: float) -> str:
    """Return a value with enough digits to distinguish it from others that lie `spread` apart.

    >>> [level(1700000040.25, 115.0), level(0.00123456, 0.001), level(12.3456, 4.0)]
    ['1700000040', '0.001235', '12.35']
    """
    apart = abs(value) / spread if spread > 0 and math.isfinite(value) else 0.0
    return f"{value:.{min(17, max(4, math.ceil(math.log10(apart)) + 2 if apart > 0 else 4))}g}"


def listed(items: Sequence[str], most: int = 3) -> str:
    """Return the first few items, and how many more there are, as one text."""
    unlisted = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + unlisted


def one_line(name: str) -> str:
    """Return a file's name with line breaks, control characters and bytes that are not text written as escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def encodable(text: str) -> str:
    """Return text with escapes for the bytes that are no valid UTF-8, which file systems allow in names."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def plural(count: int, one: str, many: str | None = None, *, spec: str = ",") -> str:
    """Return a count together with a noun, and possibly its verb, in the singular or plural.

    `many` is the plural if it is not `one` with an s appended; `spec` formats the number, by default with thousands
    separators.

    >>> [plural(count, "image") for count in (0, 1, 2, 1281167)]
    ['0 images', '1 image', '2 images', '1,281,167 images']
    >>> [plural(count, "process", "processes") for count in (1, 8)]
    ['1 process', '8 processes']
    >>> [f"{plural(count, 'file is', 'files are')} left out" for count in (1, 3)]
    ['1 file is left out', '3 files are left out']
    >>> plural(1024, "image", spec="")
    '1024 images'
    """
    return f"{count:{spec}} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Return a duration for people: "4.2 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def readable_size(count: float) -> str:
    """Return a number of bytes for people: "44.7 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r")


def inert_cell(value: object) -> object:
    """Return a cell of a CSV file in a form that no spreadsheet takes for a formula.

    Text that begins with = + - @, a tab or a carriage return gets an apostrophe before it, as OWASP advises; numbers
    stay numbers.

    >>> [inert_cell(cell) for cell in ("=1+1", "-7", "-7+1", "cat", -7, 0.5)]
    ["'=1+1", '-7', "'-7+1", 'cat', -7, 0.5]
    """
    if isinstance(value, str) and value.startswith(_FORMULA_BEGINS) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def active_cell(text: str) -> str:
    """Return the text from which `inert_cell` made this cell."""
    return text[1:] if text.startswith("'") and inert_cell(text[1:]) != text[1:] else text


def without_controls(text: str) -> str:
    r"""Return text with control characters escaped, except tab and line feed, so that no terminal obeys them.

    >>> without_controls("a\x1b[31mb\x9bc")
    'a\\x1b[31mb\\x9bc'
    """
    return "".join(f"\\x{ord(c):02x}" if (ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 else c for c in text)
