"""Plots as inline SVG: dots with intervals, distribution curves, stacked bars. Pure; colours are the page's.

Written by hand and not through matplotlib: the SVG takes the page's light or dark colours, every text stays text, and
nothing in it is random, so the same run gives the same bytes. Axes of costs and latencies begin at zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from testbed.table import digits
from testbed.typeset import clean

WIDTH = 760
LEFT, RIGHT, _ROW = 190, 24, 26
COLOURS = 10
"""That the page has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DotRow:
    label: str
    points: Sequence[float]
    value: float | None = None
    low: float | None = None
    high: float | None = None
    asked: float | None = None
    """Drawn as a tick across the row: what was asked for, or a limit."""
    series: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BarRow:
    label: str
    parts: Mapping[str, float] = field(default_factory=dict)


def dots(rows: Sequence[DotRow], *, unit: str, title: str) -> str:
    """A row of small dots (one a round), a large one for the value, a bar for its interval. Empty rows say so."""
    numbers = [0.0] + [
        v for r in rows for v in (*r.points, r.value, r.low, r.high, r.asked) if v is not None and math.isfinite(v)
    ]
    axis = Axis(min(numbers), max(numbers))
    height = len(rows) * _ROW + 46
    body = [axis.draw(height - 36, unit)]
    for i, row in enumerate(rows):
        y = 10 + i * _ROW + _ROW / 2
        body.append(text(LEFT - 10, y + 4, row.label, "end"))
        if row.asked is not None:
            x = axis.x(row.asked)
            body.append(f'<line class="asked" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 9:.1f}" y2="{y + 9:.1f}"/>')
        if row.low is not None and row.high is not None:
            a, b = axis.x(row.low), axis.x(row.high)
            body.append(
                f'<line class="s{row.series % COLOURS} interval" x1="{a:.1f}" x2="{b:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        for n, point in enumerate(row.points):
            body.append(
                f'<circle class="s{row.series % COLOURS} point" cx="{axis.x(point):.1f}" '
                f'cy="{y + (n % 5 - 2) * 2:.1f}" r="2.5"/>'
            )
        if row.value is not None:
            tip = f"<title>{escape(clean(row.label))}: {digits(row.value)} {escape(unit)}</title>"
            body.append(
                f'<circle class="s{row.series % COLOURS}" cx="{axis.x(row.value):.1f}" cy="{y:.1f}" r="5">'
                f"{tip}</circle>"
            )
        elif not row.points:
            body.append(text(LEFT + 6, y + 4, "not measured", "start", "dim"))
    return svg(height, body, title)


def curves(series: Mapping[str, Sequence[float]], *, names: Sequence[str] = (), unit: str, title: str) -> str:
    """Cumulative distributions: the share of requests at most so slow; cut at the largest p99. `names` as of `bars`."""
    height, top, bottom = 300, 14, 264
    kept = {name: sorted(v for v in values if math.isfinite(v)) for name, values in series.items()}
    kept = {name: values for name, values in kept.items() if values}
    if not kept:
        return ""
    axis = Axis(0.0, max(v[int(0.99 * (len(v) - 1))] for v in kept.values()))
    body = [axis.draw(bottom, unit)]
    for share in (0.0, 0.5, 0.9, 0.99):
        y = bottom - share * (bottom - top)
        body.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(text(LEFT - 10, y + (2 if share == 0.99 else 12 if share == 0.9 else 4), f"{share:.0%}", "end"))
    names = names or list(kept)
    for name, values in kept.items():
        steps = sorted({round(k * (len(values) - 1) / 240) for k in range(241)})
        points = [(axis.x(values[k]), bottom - (k + 1) / len(values) * (bottom - top)) for k in steps]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points if x <= WIDTH - RIGHT + 0.5)
        tip = f"<title>{escape(clean(name))}</title>"
        body.append(f'<polyline class="s{names.index(name) % COLOURS} curve" points="{path}">{tip}</polyline>')
    return svg(height, body, title) + legend(names, list(kept))


NINES = (0.5, 0.9, 0.99, 0.999, 0.9999)


def quantiles(series: Mapping[str, Sequence[float]], *, names: Sequence[str] = (), unit: str, title: str) -> str:
    """Values upwards over percentiles, each nine as wide as the one before: what a distribution's curve has in its last
    millimetre. No curve goes where fewer than five values are left."""
    height, top, bottom, left = 300, 14, 250, 66
    kept = {name: sorted(v for v in values if math.isfinite(v)) for name, values in series.items()}
    kept = {name: values for name, values in kept.items() if len(values) >= 10}
    if not kept:
        return ""
    ends = {name: 1 - 5 / len(values) for name, values in kept.items()}
    last = -math.log10(1 - max(ends.values()))
    highest = max(values[int(ends[name] * len(values))] for name, values in kept.items())
    axis = Axis(0.0, highest)
    room = WIDTH - RIGHT - left

    def x(share: float) -> float:
        return left - math.log10(1 - share) / last * room

    def y(value: float) -> float:
        return bottom - value / axis.high * (bottom - top)

    body = []
    decimals = max(0, -math.floor(math.log10(axis.step)))
    for n in range(round(axis.high / axis.step) + 1):
        value = n * axis.step
        kind = "grid" if n else "zero"
        body.append(f'<line class="{kind}" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        body.append(text(left - 8, y(value) + 4, f"{value:.{decimals}f}", "end", "dim"))
    for share in (share for share in NINES if -math.log10(1 - share) <= last):
        body.append(f'<line class="grid" x1="{x(share):.1f}" x2="{x(share):.1f}" y1="{top}" y2="{bottom}"/>')
        body.append(text(x(share), bottom + 16, f"{share * 100:g} %", "middle", "dim"))
    body.append(text(WIDTH - RIGHT, bottom + 34, "share of requests", "end", "dim"))
    body.append(text(left - 56, top - 3, unit, "start", "dim"))
    names = names or list(kept)
    for name, values in kept.items():
        shares = [1 - 10 ** (-k / 60 * -math.log10(1 - ends[name])) for k in range(61)]
        points = " ".join(f"{x(s):.1f},{y(values[min(int(s * len(values)), len(values) - 1)]):.1f}" for s in shares)
        tip = f"<title>{escape(clean(name))}</title>"
        body.append(f'<polyline class="s{names.index(name) % COLOURS} curve" points="{points}">{tip}</polyline>')
    return svg(height, body, title) + legend(names, list(kept))


def bars(rows: Sequence[BarRow], *, names: Sequence[str], unit: str, title: str) -> str:
    """Stacked by component; the sum stands at the end. `names` fixes each component's colour."""
    axis = Axis(0.0, max([sum(max(0.0, v) for v in row.parts.values()) for row in rows] or [1.0]) * 1.08)
    height = len(rows) * _ROW + 46
    body = [axis.draw(height - 36, unit)]
    for i, row in enumerate(rows):
        y, at = 10 + i * _ROW, 0.0
        body.append(text(LEFT - 10, y + 17, row.label, "end"))
        for name, value in row.parts.items():
            x, end = axis.x(at), axis.x(at + max(0.0, value))
            tip = f"<title>{escape(clean(row.label))}, {escape(clean(name))}: {digits(value)} {escape(unit)}</title>"
            series = names.index(name) % COLOURS
            body.append(
                f'<rect class="s{series}" x="{x:.1f}" y="{y + 4}" width="{end - x:.1f}" height="18">{tip}</rect>'
            )
            at += max(0.0, value)
        if row.parts:
            body.append(text(axis.x(at) + 6, y + 17, digits(at) if unit else f"{at:g}", "start"))
        else:
            body.append(text(LEFT + 6, y + 17, "none measured", "start", "dim"))
    return svg(height, body, title) + legend(names, [name for row in rows for name in row.parts])


def legend(names: Sequence[str], shown: Sequence[str] | None = None) -> str:
    keys = (
        f'<span><i class="k{i % COLOURS}"></i>{escape(clean(name))}</span>'
        for i, name in enumerate(names)
        if shown is None or name in shown
    )
    return f'<p class="legend">{" ".join(keys)}</p>'


class Axis:
    """A linear scale with round ticks."""

    def __init__(self, low: float, high: float) -> None:
        span = (high - low) or 1.0
        rough = span / 6
        power = 10.0 ** math.floor(math.log10(rough))
        self.step = next(power * f for f in (1, 2, 5, 10) if power * f >= rough)
        self.low, self.high = math.floor(low / self.step) * self.step, math.ceil(high / self.step) * self.step
        if self.high == self.low:
            self.high = self.low + self.step

    def x(self, value: float) -> float:
        return LEFT + (value - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)

    def draw(self, bottom: float, unit: str) -> str:
        out, count = [], round((self.high - self.low) / self.step)
        decimals = max(0, -math.floor(math.log10(self.step)))
        for n in range(count + 1):
            value = self.low + n * self.step
            x, kind = self.x(value), "zero" if abs(value) < self.step / 1e6 else "grid"
            out.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{bottom:.1f}"/>')
            out.append(text(x, bottom + 16, f"{value:.{decimals}f}".replace("-", "−"), "middle", "dim"))
        return "".join(out) + text(WIDTH - RIGHT, bottom + 31, unit, "end", "dim")


def text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(clean(words))}</text>'


def svg(height: float, body: Sequence[str], title: str) -> str:
    label = escape(clean(title))
    start = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}">'
    return f"<figure><figcaption>{label}</figcaption>{start}{''.join(body)}</svg></figure>"
