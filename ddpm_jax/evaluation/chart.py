"""Line charts as SVG for the page of a report, without JavaScript."""

import html
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

__all__ = ["Line", "chart", "log_ticks", "ticks"]

WIDTH, HEIGHT = 460.0, 280.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 12.0, 44.0, 44.0
COLOURS = ("#1f6fb4", "#d1622b", "#3a8a4d", "#8a4fa3", "#777777")
DASHES = ("", "6 3", "2 2", "8 2 2 2", "1 3")  # lines differ in grey prints too
MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """A curve through points (x, y)."""

    name: str
    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]


def chart(title: str, x_label: str, y_label: str, lines: list[Line], log_y: bool = False) -> str:
    """An SVG picture of lines with axes, ticks and a legend.

    Args:
        title: the title of the chart.
        x_label: the label of the horizontal axis.
        y_label: the label of the vertical axis.
        lines: the lines; points that are not finite, or not positive on a logarithmic axis, are left out.
        log_y: whether the vertical axis is logarithmic.

    Returns:
        The SVG element; "" if no line has two points.
    """
    kept = [line for line in (_thinned(line, log_y) for line in lines) if len(line.x) > 1]
    if not kept:
        return ""
    values = np.log10 if log_y else np.asarray
    x_low, x_high = _range(np.concatenate([line.x for line in kept]))
    y_low, y_high = _range(values(np.concatenate([line.y for line in kept])))

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{html.escape(title)}">']
    parts.append(_text(WIDTH / 2, 16.0, title, "middle", "title"))
    for tick in ticks(x_low, x_high):
        x, y = place(tick, y_low)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{y:.1f}"/>')
        parts.append(_text(x, y + 15, f"{tick:,.6g}", "middle"))
    for tick in log_ticks(y_low, y_high) if log_y else ticks(y_low, y_high):
        x, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(x - 6, y + 4, f"{10**tick if log_y else tick:.3g}", "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle"))
    parts.append(_text(14.0, HEIGHT / 2, y_label, "middle", more=f'transform="rotate(-90 14 {HEIGHT / 2})"'))
    legend = LEFT
    for index, line in enumerate(kept):
        colour = COLOURS[index % len(COLOURS)]
        look = f'fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{DASHES[index % len(DASHES)]}"'
        points = " ".join("{:.1f},{:.1f}".format(*place(*xy)) for xy in zip(line.x, values(line.y), strict=True))
        parts.append(f'<polyline {look} points="{points}"/>')
        parts.append(f'<line {look} x1="{legend:.1f}" x2="{legend + 22:.1f}" y1="{TOP - 12}" y2="{TOP - 12}"/>')
        parts.append(_text(legend + 27, TOP - 8, line.name, "start", more=f'style="fill: {colour}"'))
        legend += 7.0 * (len(line.name) + 2) + 30
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers for an axis.

    Args:
        low: the lower end of the axis.
        high: its upper end.
        about: the approximate number of ticks.
    """
    step = 10.0 ** math.floor(math.log10((high - low) / about))
    step *= next(factor for factor in (1.0, 2.0, 5.0, 10.0) if (high - low) / (factor * step) <= about)
    return [step * count for count in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """The decimal logarithms of 1, 2, 5, 10, ..., or of more numbers if fewer than three of these lie on the axis.

    Args:
        low: the decimal logarithm of the lower end of the axis.
        high: that of its upper end.
    """
    for factors in ((1, 2, 5), range(1, 10), (f / 10 for f in range(10, 100))):
        digits = [math.log10(factor) for factor in factors]
        found = [exponent + digit for exponent in range(math.floor(low), math.ceil(high)) for digit in digits]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 8)]
    return ticks(low, high)


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _thinned(line: Line, log_y: bool) -> Line:
    """The line in at most MOST_POINTS points, without those that cannot be drawn."""
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    good = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log_y))
    x, y = x[good], y[good]
    every = np.unique(np.linspace(0, max(len(x) - 1, 0), min(len(x), MOST_POINTS)).astype(int))
    return Line(line.name, x[every], y[every])


def _text(x: float, y: float, text: str, anchor: str, style: str = "", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}" {more}>{html.escape(text)}</text>'
