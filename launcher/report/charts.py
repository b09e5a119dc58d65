"""Positions of numbers in an SVG: scales, ticks and paths, which the templates draw.

A chart is about as wide as the screen of a phone (WIDTH units). Its letters are then as large there as on a desktop,
where charts stand side by side.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from typing_extensions import TypedDict, Unpack

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 20, 26
MOST_POINTS = 240
"""The most points of a line; a screen has no more pixels for them, so neighbouring steps are averaged."""

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Tick:
    """A labelled tick of an axis."""

    at: float
    label: str


@dataclasses.dataclass(frozen=True)
class Dot:
    """A dot on a line, with a tooltip."""

    x: float
    y: float
    title: str = ""
    r: float = 2.5


@dataclasses.dataclass(frozen=True)
class Line:
    """A line, with an entry in the legend if it has a name."""

    name: str
    look: str
    """A class of the style sheet."""
    path: str
    dots: tuple[Dot, ...] = ()


@dataclasses.dataclass(frozen=True)
class Band:
    """A stretch of the x axis."""

    x: float
    width: float
    label: str
    """The label; empty if it would not fit."""
    title: str


@dataclasses.dataclass(frozen=True)
class Mark:
    """A ring around a point, with a label beside it."""

    x: float
    y: float
    label: str
    anchor: str
    label_y: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart as the templates draw it, in units of the SVG."""

    title: str
    summary: str
    """The chart in words, for screen readers."""
    x_label: str
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    bands: tuple[Band, ...] = ()
    marks: tuple[Mark, ...] = ()
    clouds: tuple[tuple[str, str], ...] = ()
    """(look, path) of each: points as strokes of zero length."""
    bars: tuple[tuple[float, float, float, float, str, str], ...] = ()
    """(x, y, width, height, look, title) of each."""

    @property
    def named(self) -> tuple[Line, ...]:
        """The lines of the legend."""
        return tuple(line for line in self.lines if line.name)


class Shapes(TypedDict, total=False):
    """The shapes that a chart shows, as in `Chart`."""

    lines: Iterable[Line]
    bands: Iterable[Band]
    marks: Iterable[Mark]
    clouds: Iterable[tuple[str, str]]
    bars: Iterable[tuple[float, float, float, float, str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """The horizontal and the vertical scale of a chart."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    width: int = WIDTH
    height: int = HEIGHT
    left: float = LEFT
    right: float = RIGHT
    top: float = TOP

    def x(self, value: float) -> float:
        """Return the horizontal position of a value."""
        share = (value - self.x_low) / ((self.x_high - self.x_low) or 1.0)
        return round(self.left + share * (self.width - self.left - self.right), 1)

    def y(self, value: float) -> float:
        """Return the vertical position of a value."""
        share = (value - self.y_low) / ((self.y_high - self.y_low) or 1.0)
        return round(self.height - BOTTOM - share * (self.height - self.top - BOTTOM), 1)

    def path(self, points: Iterable[Point]) -> str:
        """Return a line through the points, broken where a value is not finite."""
        pieces, joined = [], False
        for x, y in points:
            if not math.isfinite(y):
                joined = False
                continue
            pieces.append(f"{'L' if joined else 'M'}{self.x(x):g} {self.y(y):g}")
            joined = True
        return "".join(pieces)

    def cloud(self, points: Iterable[Point]) -> str:
        """Return the points as strokes of zero length, which round line caps turn into dots.

        At about ten characters each, thousands of them fit in one element.
        """
        return "".join(f"M{self.x(x):g} {self.y(y):g}h0" for x, y in points if math.isfinite(x + y))

    def chart(
        self,
        title: str,
        summary: str,
        x_label: str,
        *,
        x_ticks: Sequence[Tick] | None = None,
        y_ticks: Sequence[Tick] | None = None,
        **shapes: Unpack[Shapes],
    ) -> Chart:
        """Put shapes into the frame; ticks that are not given are placed at round numbers."""
        if x_ticks is None:
            x_ticks = [Tick(self.x(value), label) for value, label in ticks(self.x_low, self.x_high, 6)]
        if y_ticks is None:
            y_ticks = [Tick(self.y(value), label) for value, label in ticks(self.y_low, self.y_high, 4)]
        return Chart(
            title=title,
            summary=summary,
            x_label=x_label,
            width=self.width,
            height=self.height,
            left=self.left,
            right=self.width - self.right,
            top=self.top,
            bottom=self.height - BOTTOM,
            x_ticks=tuple(x_ticks),
            y_ticks=tuple(y_ticks),
            lines=tuple(shapes.get("lines", ())),
            bands=tuple(shapes.get("bands", ())),
            marks=tuple(shapes.get("marks", ())),
            clouds=tuple(shapes.get("clouds", ())),
            bars=tuple(shapes.get("bars", ())),
        )

    def mark(self, x: float, y: float, label: str) -> Mark:
        """Return a ring around a point, with its label beside it and within the frame."""
        at_x, at_y = self.x(x), self.y(y)
        # Letters are about 6 units wide; the label stands on the side that has room.
        anchor = "end" if at_x + 6 + 6 * len(label) > self.width - self.right else "start"
        if anchor == "end" and at_x - 6 - 6 * len(label) < self.left:
            anchor = "middle"
        below = at_y - 20 < self.top
        return Mark(at_x, at_y, label, anchor, at_y + 17 if below else at_y - 9)


def ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Return round numbers within a range, with their labels."""
    if not high > low:
        return [(low, number(low))]
    raw = (high - low) / max(1, most)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    values = [index * step for index in range(first, first + most + 2) if index * step <= high + 1e-9 * step]
    largest = max(map(abs, values), default=0)
    if largest < 1e-3 or largest >= 1e5:
        digits = max(3, math.ceil(math.log10(largest / step)) + 1) if largest else 3
        return [(value, _short(value, digits)) for value in values]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, digits) != step and abs(round(step, digits) - step) > 1e-9 * step:
        digits += 1
    return [(value, f"{value:.{digits}f}") for value in values]


def _short(value: float, digits: int) -> str:
    """Format a number with as short an exponent as possible: 2e-5."""
    return "0" if value == 0 else f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e")


def number(value: float) -> str:
    """Format a number with four significant digits; below 1e-4 and from 1e6 on with three and an exponent."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if 1e-4 <= abs(value) < 1e6:
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        return f"{value:,.{min(digits, 6)}f}"
    return f"{value:.2e}"


def padded(values: Iterable[float], share: float = 0.06) -> tuple[float, float]:
    """Return a range that holds all finite values, with some room on both sides."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = (high - low) * share or abs(high) * 0.1 or 1.0
    return low - room, high + room


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most MOST_POINTS points: the means of neighbours, without values that are not finite."""
    if len(points) <= MOST_POINTS:
        return list(points)
    size = -(-len(points) // MOST_POINTS)
    groups = [[p for p in points[i : i + size] if math.isfinite(p[1])] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups if group]
