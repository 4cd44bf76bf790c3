"""Charts as SVG that takes its colours from the style of the page. Arrays in, text out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html import escape

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Of a chart, and its margins: left, top, right, bottom.
WIDTH, HEIGHT = 360, 240
LEFT, TOP, RIGHT, BOTTOM = 52, 14, 12, 44

#: Bars of a chart at most, and how many bins go into one to get there.
MOST_BARS, MERGED = 24, (1, 2, 5, 10, 20, 50)


@dataclass(frozen=True)
class Bars:
    """A histogram.

    Attributes:
        title: Heading.
        edges: (n + 1,) ends of the bins.
        counts: (n,) numbers.
        label: Of the horizontal axis, with the unit.
        log: Whether both axes are logarithmic.
        mark: A value to point out, and its name.
    """

    title: str
    edges: Floats
    counts: NDArray[np.int64]
    label: str
    log: bool = False
    mark: tuple[float, str] | None = None

    def trimmed(self) -> Bars:
        """Without the empty bins at both ends, and with several in one where there are many."""
        held = np.flatnonzero(self.counts)
        if not len(held):
            return self
        first, end = held[0], held[-1] + 1
        together = next(n for n in MERGED if (end - first) / n <= MOST_BARS or n == MERGED[-1])
        first, end = first // together * together, -(-end // together) * together
        starts = np.arange(0, end - first, together)
        edges, counts = self.edges[first : end + 1 : together], np.add.reduceat(self.counts[first:end], starts)
        return replace(self, edges=edges, counts=counts)


def histogram(bars: Bars) -> str:
    """The chart as a figure of a page."""
    total = int(bars.counts.sum())
    most = int(bars.counts.argmax())
    low, high = bars.edges[[most, most + 1]]
    words = (
        f"{bars.title}: {total:,} landslides; most of them, {bars.counts[most]:,}, at {number(low)} to {number(high)}"
    )
    return (
        f'<figure class="chart"><figcaption>{escape(bars.title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">{"".join(_drawn(bars))}</svg>'
        "</figure>"
    )


def _drawn(bars: Bars) -> Iterator[str]:
    across, up = _across(bars), _up(bars)
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value, text in _levels(bars):
        y = up(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text("tick", LEFT - 6, y + 4, text, "end")
    for low, high, count in zip(bars.edges, bars.edges[1:], bars.counts, strict=False):
        if count:
            x, y = across(low), up(count)
            yield (
                f'<rect class="bar" x="{x + 0.75:.1f}" y="{y:.1f}" width="{max(across(high) - x - 1.5, 1):.1f}" '
                f'height="{max(bottom - y, 1):.1f}"><title>{number(low)} to {number(high)}: {count:,}</title></rect>'
            )
    yield f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    for value in _ticks(bars):
        x = across(value)
        yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        yield _text("tick", x, bottom + 17, number(value))
    if bars.mark and bars.edges[0] <= bars.mark[0] <= bars.edges[-1]:
        x = across(bars.mark[0])
        side, anchor = (5, "start") if x < WIDTH * 0.7 else (-5, "end")
        yield f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>'
        yield _text("tick", x + side, TOP + 9, bars.mark[1], anchor)
    middle = (LEFT + right) / 2
    yield _text("label", middle, HEIGHT - 6, bars.label)
    yield f'<g transform="translate(12 {(TOP + bottom) / 2}) rotate(-90)">{_text("label", 0, 0, "number")}</g>'


def _text(kind: str, x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _across(bars: Bars) -> Callable[[float], float]:
    scale = np.log10 if bars.log else np.asarray
    low, high = (float(scale(v)) for v in bars.edges[[0, -1]])
    return lambda value: LEFT + (float(scale(value)) - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _up(bars: Bars) -> Callable[[float], float]:
    """Logarithmic axes begin at one half, so that one landslide can be seen."""
    top = max(int(bars.counts.max()), 1)
    if bars.log:
        low, high = np.log10(0.5), np.log10(max(top, 2) * 1.2)
        return lambda v: HEIGHT - BOTTOM - float((np.log10(v) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM)
    return lambda v: HEIGHT - BOTTOM - v / (top * 1.05) * (HEIGHT - TOP - BOTTOM)


def _levels(bars: Bars) -> list[tuple[float, str]]:
    """Values of the vertical axis."""
    top = max(int(bars.counts.max()), 1)
    if bars.log:
        values = [10.0**i for i in range(int(np.log10(top)) + 1)]
        if len(values) == 1:
            values = [v for v in (1.0, 2.0, 5.0) if v <= top]
        return [(v, number(v)) for v in values]
    step = max(1.0, nice(top / 4))
    return [(v, number(v)) for v in np.arange(0, top + step / 2, step) if v <= top * 1.05]


def _ticks(bars: Bars) -> list[float]:
    """Values of the horizontal axis."""
    low, high = bars.edges[[0, -1]]
    if bars.log:
        decades = [10.0**i for i in range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)]
        fine = [v * m for v in decades for m in ((1,) if high / low > 300 else (1, 2, 5))]
        return [v for v in fine if low * 0.999 <= v <= high * 1.001]
    step = nice((high - low) / 4)
    return [float(v) for v in np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step]


def nice(value: float) -> float:
    """The largest of 1, 2 or 5 times a power of ten that is not above a value."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(n for n in (1, 2, 5) if n * power <= value * 1.0000001) * power)


def number(value: float) -> str:
    """Few digits, thousands apart."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):g}"
