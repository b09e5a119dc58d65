"""Values as people read them."""

from __future__ import annotations


def number(value: float) -> str:
    """Return a measured value with at least three significant digits, whatever its size.

    >>> [number(value) for value in (0.96384, 12.5, 0.0000123456, 1.7e9, 0.0)]
    ['0.9638', '12.5000', '1.235e-05', '1.7e+09', '0.0000']
    """
    return f"{value:.4f}" if value == 0 or 0.01 <= abs(value) < 10_000 else f"{value:.4g}"
