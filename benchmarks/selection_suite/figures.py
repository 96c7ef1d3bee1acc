"""Line charts as SVG, in the form of the paper's figures."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 190, 40, 48
_COLOURS = (
    "#1f5fa8",
    "#c8501e",
    "#2f8a4c",
    "#8a4fa3",
    "#b58900",
    "#666666",
    "#d1437d",
    "#1899a6",
    "#7a5230",
    "#000000",
)
_TICKS = 5


class Line(NamedTuple):
    """A named line through points (x, y), in rising order of x."""

    name: str
    points: Sequence[tuple[float, float]]


def chart(title: str, x_name: str, y_name: str, lines: Sequence[Line]) -> str:
    """An SVG with the lines, and their names at their right."""
    points = [point for line in lines for point in line.points]
    x_ticks, y_ticks = (_ticks([point[axis] for point in points]) for axis in (0, 1))

    def x(value: float) -> float:
        return _LEFT + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (_HEIGHT - _TOP - _BOTTOM)

    left, right, bottom = x(x_ticks[0]), x(x_ticks[-1]), y(y_ticks[0])
    parts = [_text(left, 22, title, "start", bold=True), _text((left + right) / 2, _HEIGHT - 8, x_name, "middle")]
    parts.append(_text(left, 36, y_name, "start"))
    for tick in y_ticks:
        parts.append(f'<path d="M{left:.1f} {y(tick):.1f}H{right:.1f}" stroke="#ddd"/>')
        parts.append(_text(left - 6, y(tick) + 4, _number(tick), "end"))
    parts += [_text(x(tick), bottom + 18, _number(tick), "middle") for tick in x_ticks]
    for place, line in enumerate(lines):
        colour = _COLOURS[place % len(_COLOURS)]
        path = "L".join(f"{x(one):.1f} {y(other):.1f}" for one, other in line.points)
        dashes = ' stroke-dasharray="5 3"' if place >= len(_COLOURS) else ""
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dashes}/>')
        parts += [
            f'<circle cx="{x(one):.1f}" cy="{y(other):.1f}" r="2" fill="{colour}"/>' for one, other in line.points
        ]
        parts.append(_text(right + 12, _TOP + 12 + 17 * place, line.name, "start", colour))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers that span the values, about `_TICKS` of them."""
    low, high = min(values), max(values)
    rough = (high - low) / _TICKS or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return [number * step for number in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value / 1000:,.0f}k" if abs(value) >= 10_000 else f"{value:.4g}"


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#222", *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>{escape(text)}</text>'
