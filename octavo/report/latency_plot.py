"""Latency over time as one self-contained SVG: the median of each window, the middle 80 % around it, two quarters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10
from typing import Any

WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 62, 46
INK, FAINT, GRID, LINE, BAND, FIRST, LAST = "#1b1f24", "#59636e", "#e4e7eb", "#0b62c4", "#0b62c4", "#2f7d32", "#c2410c"
TICKS = 5


def latency_plot(title: str, windows: Sequence[Mapping[str, Any]], judged: Mapping[str, Any] | None) -> str:
    """`windows` in order, with start_s, end_s, p10, p50, p90 in ms; `judged`: word, ratio, low, high, cause."""
    shape = _Shape(windows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img">',
        f"<title>{escape(f'Latency over time: {title}')}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _label(LEFT, 22, f"{title}: latency over time", size=15, weight=600),
        _label(LEFT, 42, _subtitle(windows, judged), fill=FAINT),
        *_grid(shape),
        f'<polygon points="{shape.band()}" fill="{BAND}" fill-opacity="0.16"/>',
        f'<polyline points="{shape.line()}" fill="none" stroke="{LINE}" stroke-width="1.6" stroke-linejoin="round"/>',
        *_quarters(shape, windows, judged),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Shape:
    """Seconds and milliseconds to places on the paper; the ordinate begins at 0, so that a change looks its size."""

    def __init__(self, windows: Sequence[Mapping[str, Any]]) -> None:
        self.windows = windows
        self.seconds = max(float(window["end_s"]) for window in windows)
        self.step = _round_step(max(float(window["p90"]) for window in windows) * 1.05)
        self.top = self.step * TICKS

    def x(self, seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / self.seconds

    def y(self, milliseconds: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * milliseconds / self.top

    def line(self) -> str:
        return " ".join(self._point(window, "p50") for window in self.windows)

    def band(self) -> str:
        below = [self._point(window, "p10") for window in self.windows]
        return " ".join([*below, *(self._point(window, "p90") for window in reversed(self.windows))])

    def _point(self, window: Mapping[str, Any], key: str) -> str:
        middle = (float(window["start_s"]) + float(window["end_s"])) / 2
        return f"{self.x(middle):.1f},{self.y(float(window[key])):.1f}"


def _grid(shape: _Shape) -> list[str]:
    """Axes with round numbers."""
    parts = []
    for place in range(TICKS + 1):
        y = shape.y(shape.step * place)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(_label(LEFT - 8, y + 4, f"{shape.step * place:.4g}", anchor="end", fill=FAINT))
    unit, scale = ("min", 60.0) if shape.seconds >= 120 else ("s", 1.0)
    step = _round_step(shape.seconds / scale)
    place = 0
    while step * place * scale <= shape.seconds * 1.001:
        parts.append(
            _label(shape.x(step * place * scale), HEIGHT - BOTTOM + 18, f"{step * place:.4g}", "middle", FAINT)
        )
        place += 1
    parts.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, f"time, {unit}", "middle", FAINT))
    parts.append(_label(LEFT - 8, TOP - 8, "ms", "end", FAINT))
    return parts


def _quarters(shape: _Shape, windows: Sequence[Mapping[str, Any]], judged: Mapping[str, Any] | None) -> list[str]:
    """The medians that the verdict compares, dashed; nothing where there were too few windows."""
    if judged is None or judged.get("ratio") is None:
        return []
    quarter = len(windows) // 4
    parts = []
    for name, part, colour in (("first", windows[:quarter], FIRST), ("last", windows[-quarter:], LAST)):
        values = sorted(float(window["p50"]) for window in part)
        half = len(values) // 2
        middle = values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2
        left, right, y = shape.x(float(part[0]["start_s"])), shape.x(float(part[-1]["end_s"])), shape.y(middle)
        parts.append(
            f'<line x1="{left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="2.5" '
            'stroke-dasharray="7 4"/>'
        )
        below = min(HEIGHT - BOTTOM - 6, max(shape.y(min(float(w["p10"]) for w in part)), y) + 16)
        parts.append(_label((left + right) / 2, below, f"{name} quarter {middle:.4g} ms", "middle", colour))
    return parts


def _subtitle(windows: Sequence[Mapping[str, Any]], judged: Mapping[str, Any] | None) -> str:
    what = f"median of each of {len(windows)} windows, 10th to 90th percentile shaded"
    if judged is None:
        return what
    if judged.get("ratio") is None:
        return f"{judged['word']} to judge; {what}"
    ends = f"{judged['ratio']:.3f} [{judged['low']:.3f}, {judged['high']:.3f}]"
    return f"{judged['word']}: last quarter / first {ends}; {what}"


def _round_step(top: float) -> float:
    """The smallest of 1, 2, 2.5, 4, 5 × 10ⁿ of which TICKS reach `top`."""
    if top <= 0:
        return 1.0
    power = 10.0 ** floor(log10(top / TICKS))
    return next(step * power for step in (1.0, 2.0, 2.5, 4.0, 5.0, 10.0) if step * power * TICKS >= top * 0.9999)


def _label(
    x: float, y: float, text: str, anchor: str = "start", fill: str = INK, *, size: int = 12, weight: int = 400
) -> str:
    style = f'text-anchor="{anchor}" fill="{fill}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
