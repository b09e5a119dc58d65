"""Values as people read them."""

from __future__ import annotations

import math


def number(value: float | None) -> str:
    """Return a measured value with at least three significant digits, whatever its size; "nan" where it is none.

    >>> [number(value) for value in (0.96384, 12.5, 0.0000123456, 1.7e9, 0.0)]
    ['0.9638', '12.5000', '1.235e-05', '1.7e+09', '0.0000']
    """
    if value is None:
        return "nan"
    return f"{value:.4f}" if value == 0 or 0.01 <= abs(value) < 10_000 else f"{value:.4g}"


def level(value: float, spread: float) -> str:
    """Return a value among others that lie `spread` apart, with the digits that tell it from them.

    >>> [level(1700000040.25, 115.0), level(0.00123456, 0.001), level(12.3456, 4.0)]
    ['1700000040', '0.001235', '12.35']
    """
    apart = abs(value) / spread if spread > 0 and math.isfinite(value) else 0.0
    return f"{value:.{min(17, max(4, math.ceil(math.log10(apart)) + 2 if apart > 0 else 4))}g}"
