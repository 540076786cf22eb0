"""Quantities over time, drawn with block characters and as an SVG picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_EIGHTHS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Panel:
    """One picture: values at equal distances in time, from nothing upwards."""

    title: str
    values: Sequence[float]


def blocks(values: Sequence[float], *, height: int = 6) -> list[str]:
    """Lines of block characters, a column for each value; the highest value fills the height."""
    most = max(values, default=0.0)
    # What is not nothing is seen.
    eighths = [max(1, round(value / most * height * 8)) if value > 0 else 0 for value in values]
    return [
        "".join(_EIGHTHS[min(8, max(0, column - row * 8))] for column in eighths).rstrip()
        for row in reversed(range(height))
    ]


def marks(span: float) -> tuple[str, float, list[float]]:
    """For an axis of so many seconds: its unit, that in seconds, and a handful of round numbers of it."""
    names = (("days", 86_400.0, 3.0), ("hours", 3600.0, 2.0), ("minutes", 60.0, 2.0), ("seconds", 1.0, 0.0))
    unit, seconds = next((name, size) for name, size, least in names if span >= size * least)
    length = span / seconds
    steps = [base * 10.0**power for power in range(-3, 9) for base in (1, 2, 5)]
    step = next(step for step in steps if length / step <= 8)
    return unit, seconds, [step * number for number in range(int(length / step) + 1)]


def axis(span: float, width: int) -> list[str]:
    """Two lines under blocks of that width: ticks, and what they mean."""
    unit, seconds, numbers = marks(span)
    ticks, words = ["─"] * width, [" "] * (width + 20)
    for number in numbers:
        column = min(width - 1, int(number * seconds / span * width))
        ticks[column] = "┬"
        for offset, letter in enumerate(f"{number:g}"):
            words[column + offset] = letter
    return ["".join(ticks), f"{''.join(words).rstrip()} {unit}"]


_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 720, 180, 72, 34, 62


def svg(panels: Sequence[Panel], *, span: float, title: str) -> str:
    """A picture with a panel below the other, over `span` seconds. Needs no script, font or style from elsewhere."""
    unit, seconds, numbers = marks(span)
    high = _TOP + len(panels) * (_HEIGHT + _GAP)
    wide = _LEFT + _WIDTH + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif"'
        f' font-size="13" fill="#222" role="img" aria-label="{escape(title)}">',
        f'<rect width="{wide}" height="{high}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="20" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for nth, panel in enumerate(panels):
        top = _TOP + nth * (_HEIGHT + _GAP) + 22
        bottom = top + _HEIGHT
        most = max(panel.values, default=0.0) or 1.0
        steps = max(1, len(panel.values) - 1)
        points = " ".join(
            f"{_LEFT + _WIDTH * n / steps:.1f},{bottom - _HEIGHT * value / most:.1f}"
            for n, value in enumerate(panel.values)
        )
        parts.append(f'<text x="{_LEFT}" y="{top - 8}">{escape(panel.title)}</text>')
        for part in (0.0, 0.5, 1.0):
            y = bottom - _HEIGHT * part
            parts.append(
                f'<path d="M{_LEFT} {y:.1f}h{_WIDTH}" stroke="#ddd"/>'
                f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(most * part)}</text>'
            )
        parts.append(
            f'<polygon points="{_LEFT},{bottom} {points} {_LEFT + _WIDTH},{bottom}" fill="#cfe0f3"/>'
            f'<polyline points="{points}" fill="none" stroke="#1c5d99" stroke-width="1.5"/>'
        )
        for number in numbers:
            x = _LEFT + _WIDTH * number * seconds / span
            parts.append(
                f'<path d="M{x:.1f} {bottom}v5" stroke="#222"/>'
                f'<text x="{x:.1f}" y="{bottom + 19}" text-anchor="middle">{number:g}</text>'
            )
        parts.append(
            f'<path d="M{_LEFT} {bottom}h{_WIDTH}" stroke="#222"/>'
            f'<text x="{_LEFT + _WIDTH}" y="{bottom + 34}" text-anchor="end">{unit}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _short(value: float) -> str:
    """A number for an axis: 0, 3.4, 870, 12 k, 1.9 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
