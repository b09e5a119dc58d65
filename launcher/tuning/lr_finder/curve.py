"""Curve of a learning rate range test: in characters for a terminal or a file, and as SVG."""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
from collections.abc import Callable, Sequence

from launcher.tuning.lr_finder.suggestions import Suggestions, rounded
from launcher.tuning.lr_finder.trace import Trace

COLUMNS, ROWS = 64, 12
WIDTH, HEIGHT = 720, 320
"""Width and height of a phase's panel in SVG, in px."""
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 50
MARKS = (("steepest", "#1f77b4"), ("valley", "#2ca02c"), ("slide", "#9467bd"), ("recommended", "#d62728"))
_BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the dots of a braille character, by row and column."""


@dataclasses.dataclass(frozen=True)
class Frame:
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


def frame_of(trace: Trace, *, with_dots: bool) -> Frame | None:
    """Return the section to show, or None if there are too few losses for a curve.

    A loss that diverges would flatten all others, so the frame ends a third of its span above the highest loss before
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
    return Frame(trace.lrs[0], trace.lrs[-1], bottom if low < 0 else max(0.0, bottom), low + 4 / 3 * span)


def as_text(trace: Trace, suggestions: Suggestions, *, plain: bool) -> list[str]:
    """Return the lines of a plot of the smoothed losses, in braille or in ASCII.

    `^` below the axis marks the recommended rate.
    """
    frame = frame_of(trace, with_dots=False)
    if frame is None:
        return []
    across, down = (1, 1) if plain else (2, 4)
    width, height = COLUMNS * across, ROWS * down
    filled = [[False] * width for _ in range(height)]
    points = [
        (frame.x(lr) * (width - 1), (1 - frame.y(loss)) * (height - 1))
        for lr, loss in zip(trace.lrs, trace.smoothed, strict=True)
    ]
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        steps = max(1, math.ceil(max(abs(next_x - x), abs(next_y - y))))
        for step in range(steps + 1):
            part = step / steps
            filled[round(y + part * (next_y - y))][round(x + part * (next_x - x))] = True
    lines = []
    for row in range(ROWS):
        label = {0: frame.high, ROWS - 1: frame.low}.get(row)
        cells = "".join(_cell(filled, row, column, plain=plain) for column in range(COLUMNS))
        lines.append(f"{'' if label is None else f'{label:.3g}':>9} {'|' if plain else '│'}{cells}".rstrip())
    axis, corner = ("-", "+") if plain else ("─", "└")
    lines.append(f"{'loss':>9} {corner}{axis * COLUMNS}")
    if suggestions.recommended is not None and frame.first <= suggestions.recommended <= frame.last:
        place = round(frame.x(suggestions.recommended) * (COLUMNS - 1))
        lines.append(f"{' ' * (11 + place)}^")
    first, middle, last = (f"{lr:.1e}" for lr in (frame.first, math.sqrt(frame.first * frame.last), frame.last))
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


def as_svg(found: Sequence[tuple[Trace, Suggestions]], title: str) -> str:
    """Return an SVG with one panel per phase: losses as dots, their average as a line, suggestions as marks."""
    height = HEIGHT * len(found)
    panels = "\n".join(
        f'<g transform="translate(0 {HEIGHT * number})">\n{_panel(trace, suggestions)}\n</g>'
        for number, (trace, suggestions) in enumerate(found)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">\n'
        f"<title>{_escaped(title)}</title>\n"
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n{panels}\n</svg>\n'
    )


def _panel(trace: Trace, suggestions: Suggestions) -> str:
    name = f"phase {trace.number + 1}: {trace.phase}"
    lines = [f'<text x="{LEFT}" y="16" font-size="14">{_escaped(name)}</text>']
    frame = frame_of(trace, with_dots=True)
    if frame is None:
        return "\n".join([*lines, f'<text x="{LEFT}" y="{HEIGHT / 2}">{_escaped(suggestions.why)}</text>'])

    def x(lr: float) -> float:
        return LEFT + frame.x(lr) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return HEIGHT - BOTTOM - frame.y(loss) * (HEIGHT - TOP - BOTTOM)

    lines += _axes(frame, x, y)
    lines += [
        f'<circle cx="{x(lr):.1f}" cy="{y(loss):.1f}" r="1.5" fill="#bbbbbb"/>'
        for lr, loss in zip(trace.lrs, trace.losses, strict=True)
        if loss <= frame.high
    ]
    points = " ".join(f"{x(lr):.1f},{y(loss):.1f}" for lr, loss in zip(trace.lrs, trace.smoothed, strict=True))
    lines.append(f'<polyline points="{points}" fill="none" stroke="#333333" stroke-width="2"/>')
    place = LEFT
    for mark, colour in MARKS:
        lr = getattr(suggestions, mark)
        if lr is None:
            continue
        if frame.first <= lr <= frame.last:
            wide = 2.5 if mark == "recommended" else 1
            lines.append(
                f'<line x1="{x(lr):.1f}" y1="{TOP}" x2="{x(lr):.1f}" y2="{HEIGHT - BOTTOM}" stroke="{colour}" '
                f'stroke-width="{wide}" stroke-dasharray="{"none" if wide > 1 else "4 3"}"/>'
            )
        lines.append(f'<text x="{place}" y="33" fill="{colour}">{mark} {rounded(lr)}</text>')
        place += 130
    return "\n".join(lines)


def _axes(frame: Frame, x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    lines = [
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}" fill="none" '
        'stroke="#999999"/>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">optim.lr</text>',
        f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">training loss</text>',
    ]
    powers = range(math.ceil(math.log10(frame.first) - 1e-9), math.floor(math.log10(frame.last) + 1e-9) + 1)
    for lr in (10.0**power for power in powers):
        lines.append(
            f'<line x1="{x(lr):.1f}" y1="{HEIGHT - BOTTOM}" x2="{x(lr):.1f}" y2="{HEIGHT - BOTTOM + 5}" '
            f'stroke="#999999"/><text x="{x(lr):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{lr:.0e}</text>'
        )
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        loss = frame.low + part * (frame.high - frame.low)
        lines.append(f'<text x="{LEFT - 6}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.3g}</text>')
    return lines


def _escaped(text: str) -> str:
    """Escape text for XML, and replace characters that XML cannot hold."""
    return html.escape("".join(letter if letter.isprintable() else "?" for letter in text))
