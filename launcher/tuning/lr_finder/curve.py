"""Curve of a learning rate range test: in characters for a terminal or a file, and as SVG."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from launcher.report.charts import Chart, Dot, Frame, Line, Tick
from launcher.report.page import svg
from launcher.tuning.lr_finder.suggestions import Suggestions, rounded
from launcher.tuning.lr_finder.trace import Trace

COLUMNS, ROWS = 64, 12
WIDTH, HEIGHT, LEFT = 720, 280, 56
"""Width and height of a phase's chart in SVG, and the room left of its axis, in px."""
MARKS = (("steepest", "ideal run-1"), ("valley", "ideal run-2"), ("slide", "ideal run-3"), ("recommended", "run-4"))
"""Suggestions that are marked in SVG, with the look of each."""
_BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the dots of a braille character, by row and column."""


@dataclasses.dataclass(frozen=True)
class Extent:
    """Section of the plane that is shown: all rates that were tried, and losses as far as they are informative."""

    first: float
    last: float
    low: float
    high: float

    def x(self, lr: float) -> float:
        """Return the horizontal place of a rate on a logarithmic axis: 0 at the left, 1 at the right."""
        return math.log(lr / self.first) / math.log(self.last / self.first)

    def y(self, loss: float) -> float:
        """Return the vertical place of a loss: 0 at the bottom, 1 at the top, where higher losses are put as well."""
        return min(1.0, max(0.0, (loss - self.low) / (self.high - self.low)))


def extent_of(trace: Trace, *, with_dots: bool) -> Extent | None:
    """Return the section to show, or None if there are too few losses for a curve.

    A loss that diverges would flatten all others, so the section ends a third of its span above the highest loss before
    the lowest one. With `with_dots`, losses that are not smoothed are shown, too.
    """
    losses = trace.smoothed
    if len(losses) < 3:
        return None
    lowest = losses.index(min(losses))
    before = max(losses[: lowest + 1])
    low = min(trace.losses) if with_dots else losses[lowest]
    span = max(before - low, 0.5 * max(abs(low), trace.least_loss), 1e-9)
    bottom = low - 0.05 * span
    return Extent(trace.lrs[0], trace.lrs[-1], bottom if low < 0 else max(0.0, bottom), low + 4 / 3 * span)


def as_text(trace: Trace, suggestions: Suggestions, *, plain: bool) -> list[str]:
    """Return the lines of a plot of the smoothed losses, in braille or in ASCII.

    `^` below the axis marks the recommended rate.
    """
    extent = extent_of(trace, with_dots=False)
    if extent is None:
        return []
    across, down = (1, 1) if plain else (2, 4)
    width, height = COLUMNS * across, ROWS * down
    filled = [[False] * width for _ in range(height)]
    points = [
        (extent.x(lr) * (width - 1), (1 - extent.y(loss)) * (height - 1))
        for lr, loss in zip(trace.lrs, trace.smoothed, strict=True)
    ]
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        steps = max(1, math.ceil(max(abs(next_x - x), abs(next_y - y))))
        for step in range(steps + 1):
            part = step / steps
            filled[round(y + part * (next_y - y))][round(x + part * (next_x - x))] = True
    lines = []
    for row in range(ROWS):
        label = {0: extent.high, ROWS - 1: extent.low}.get(row)
        cells = "".join(_cell(filled, row, column, plain=plain) for column in range(COLUMNS))
        lines.append(f"{'' if label is None else f'{label:.3g}':>9} {'|' if plain else '│'}{cells}".rstrip())
    axis, corner = ("-", "+") if plain else ("─", "└")
    lines.append(f"{'loss':>9} {corner}{axis * COLUMNS}")
    if suggestions.recommended is not None and extent.first <= suggestions.recommended <= extent.last:
        place = round(extent.x(suggestions.recommended) * (COLUMNS - 1))
        lines.append(f"{' ' * (11 + place)}^")
    first, middle, last = (f"{lr:.1e}" for lr in (extent.first, math.sqrt(extent.first * extent.last), extent.last))
    gap = COLUMNS - len(first) - len(middle) - len(last)
    lines.append(f"{'optim.lr':>9}  {first}{' ' * (gap // 2)}{middle}{' ' * (gap - gap // 2)}{last}")
    return lines


def _cell(filled: Sequence[Sequence[bool]], row: int, column: int, *, plain: bool) -> str:
    if plain:
        return "*" if filled[row][column] else " "
    bits = sum(
        bit
        for down, pair in enumerate(_BRAILLE)
        for across, bit in enumerate(pair)
        if filled[4 * row + down][2 * column + across]
    )
    return chr(0x2800 + bits) if bits else " "


def as_svg(results: Sequence[tuple[Trace, Suggestions]], title: str) -> str:
    """Return an SVG with one chart per phase: losses as dots, their average as a line, suggestions as marks."""
    return svg(_printable(title), [_chart(trace, suggestions) for trace, suggestions in results])


def _chart(trace: Trace, suggestions: Suggestions) -> Chart:
    title = _printable(f"phase {trace.number + 1}: {trace.phase}")
    summary = f"{'nothing to recommend' if suggestions.recommended is None else 'recommended'}: {suggestions.why}"
    extent = extent_of(trace, with_dots=True)
    if extent is None:
        empty = Frame(x_low=0, x_high=1, y_low=0, y_high=1, width=WIDTH, height=HEIGHT, left=LEFT)
        return empty.chart(title, summary, "optim.lr", x_ticks=(), y_ticks=())
    first, last = math.log10(extent.first), math.log10(extent.last)
    low, high = extent.low, extent.high
    frame = Frame(x_low=first, x_high=last, y_low=low, y_high=high, width=WIDTH, height=HEIGHT, left=LEFT)
    powers = range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)
    dots = tuple(
        Dot(frame.x(math.log10(lr)), frame.y(loss), f"{rounded(lr)}: {loss:.4g}", 1.5)
        for lr, loss in zip(trace.lrs, trace.losses, strict=True)
        if loss <= high
    )
    average = [(math.log10(lr), min(loss, high)) for lr, loss in zip(trace.lrs, trace.smoothed, strict=True)]
    lines = [Line("training loss", "train", "", dots), Line("smoothed", "val", frame.path(average))]
    for mark, look in MARKS:
        if (lr := getattr(suggestions, mark)) is not None:
            at = math.log10(lr)
            path = frame.path([(at, low), (at, high)]) if extent.first <= lr <= extent.last else ""
            lines.append(Line(f"{mark} {rounded(lr)}", look, path))
    x_ticks = [Tick(frame.x(power), rounded(10.0**power)) for power in powers]
    return frame.chart(title, summary, "optim.lr", x_ticks=x_ticks, lines=lines)


def _printable(text: str) -> str:
    """Replace the characters that XML cannot hold."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
