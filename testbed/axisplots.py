"""Plots over a sweep's axis: a figure a metric, a line a plane, an interval at every point. Pure; inline SVG.

Cells that stand on the axis are points of lines, all cells that are kinds are rows of dots. Latency goes over the
throughput that was really reached where the axis says so; a break-even point is marked on the line of what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from testbed import axis, axistable, stats
from testbed.axis import FIGURES, Sweep
from testbed.plots import COLOURS, RIGHT, WIDTH, Axis, DotRow, dots, svg, text
from testbed.stats import Interval
from testbed.table import AA, BASE, digits
from testbed.typeset import clean

LEFT, TOP, BOTTOM, HEIGHT = 66, 16, 300, 346
DASHES = ("", "6 4", "2 3", "10 3 2 3")
"""Of lines of one plane, one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    at: float
    value: float
    low: float | None = None
    high: float | None = None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    label: str
    dots: tuple[Dot, ...]
    series: int
    dash: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A place on the axis that was found, with its interval."""

    label: str
    low: float
    at: float
    high: float
    series: int


def page(sweep: Sweep) -> str:
    """All of a sweep's plots, for the report; empty for a run without an axis."""
    if not sweep.axis.get("name"):
        return ""
    parts = [f"<h2>Over the axis: {escape(clean(sweep.axis['name']))}</h2>"]
    for metric in sweep.axis.get("metrics", ()):
        parts.append(over_axis(sweep, metric) if sweep.on_axis() else over_kinds(sweep, metric))
    parts.append(differences(sweep))
    drawn = "".join(parts[1:])
    return parts[0] + (drawn or "<p class=dim>Nothing was measured.</p>")


def over_axis(sweep: Sweep, metric: str) -> str:
    """A metric by plane; empty where none has it."""
    lines = lines_of(sweep, metric)
    if not lines:
        return ""
    figure = FIGURES[metric]
    across = sweep.axis.get("measured", "")
    name, unit = (FIGURES[across].title, FIGURES[across].unit) if across else (sweep.axis["name"], sweep.axis["unit"])
    title = f"{axistable.capital(figure.title)} over {name}: median over rounds, 95 % interval"
    logarithmic = bool(sweep.axis.get("logarithmic")) and not across
    across = f"{name}, {unit}" if unit else name
    return chart(lines, title=title, across=across, unit=figure.unit, logarithmic=logarithmic)


def lines_of(sweep: Sweep, metric: str, *, base: str | None = None) -> list[Line]:
    """One a plane and line of the axis; with `base` of the differences to that plane in the same rounds."""
    found = []
    across = sweep.axis.get("measured", "")
    for plane in sweep.planes:
        if plane == base:
            continue
        series = colour(sweep, plane)
        for dash, line in enumerate(sweep.lines):
            drawn = []
            for place in sweep.on_axis(line):
                value = _difference(sweep, plane, base, place.cell, metric) if base else None
                value = value if base else sweep.value(plane, place.cell, metric)
                reached = sweep.value(plane, place.cell, across) if across else None
                if value is None or place.at is None or (across and reached is None):
                    continue
                at = reached.estimate if reached else place.at
                finite = math.isfinite(value.low) and math.isfinite(value.high)
                low, high = (value.low, value.high) if finite else (None, None)
                drawn.append(Dot(at=at, value=value.estimate, low=low, high=high, name=place.cell))
            if drawn:
                label = f"{plane}, {line}" if line else plane
                drawn.sort(key=lambda dot: dot.at)
                found.append(Line(label=label, dots=tuple(drawn), series=series, dash=dash))
    return found


def colour(sweep: Sweep, plane: str) -> int:
    """The two greys are for the plane without a mesh and its twin, whether they are there or not."""
    proxied = [name for name in sweep.planes if name not in (BASE, AA)]
    return proxied.index(plane) + 2 if plane in proxied else int(plane == AA)


def _difference(sweep: Sweep, plane: str, base: str, cell: str, metric: str) -> Interval | None:
    differences = stats.paired_differences(sweep.rounds(plane, cell, metric), sweep.rounds(base, cell, metric))
    return stats.block_interval(differences) if differences else None


def differences(sweep: Sweep) -> str:
    """What a waypoint costs beside sidecars over the distance, and where that is nothing."""
    pairs = axistable.bases(sweep)
    if not pairs or not sweep.on_axis():
        return ""
    base = pairs[0][1]
    planes = [plane for plane, its in pairs if its == base]
    lines = [line for line in lines_of(sweep, "latency_p50", base=base) if line.label in planes]
    marks = []
    for plane in planes:
        found = axis.break_even(sweep, plane, base)
        if found is None or found.crossing is None or found.always_more or axistable.far(found):
            continue  # the table says so in words
        if (crossing := found.crossing).high > 0:
            marks.append(
                Mark(
                    label=f"break-even of {plane}: {axistable.told(found)}",
                    low=max(0.0, crossing.low), at=max(0.0, crossing.estimate), high=crossing.high,
                    series=colour(sweep, plane),
                )
            )  # fmt: skip
    name, unit = sweep.axis["name"], sweep.axis["unit"]
    title = f"p50 of a waypoint minus p50 of {base}, in the same rounds, over {name}"
    return chart(lines, title=title, across=f"{name}, {unit}", unit="ms", marks=marks) if lines else ""


def over_kinds(sweep: Sweep, metric: str) -> str:
    """Cells that are kinds, not places: a row a cell and plane."""
    rows, figure = [], FIGURES[metric]
    for place in sweep.places:
        for plane in sweep.planes:
            found = sweep.value(plane, place.cell, metric)
            if found is None:
                continue
            finite = math.isfinite(found.low) and math.isfinite(found.high)
            rows.append(
                DotRow(
                    label=f"{place.cell}, {plane}",
                    points=list(sweep.rounds(plane, place.cell, metric).values()),
                    value=found.estimate,
                    low=found.low if finite else None,
                    high=found.high if finite else None,
                    series=colour(sweep, plane),
                )
            )
    title = f"{axistable.capital(figure.title)} by {sweep.axis['name']}: a dot a round, median, 95 % interval"
    return dots(rows, unit=figure.unit, title=title) if rows else ""


def chart(
    lines: Sequence[Line], *, title: str, across: str, unit: str, logarithmic: bool = False, marks: Sequence[Mark] = ()
) -> str:
    """Values upwards from nothing (or below it where some are), places across; each point says what it is."""
    places = [dot.at for line in lines for dot in line.dots] + [mark.at for mark in marks]
    heights = [v for line in lines for d in line.dots for v in (d.value, d.low, d.high) if v is not None]
    # One wide interval must not make a flat picture of all the others: it is cut, and told in its tip.
    middles = [d.value for line in lines for d in line.dots]
    span = (max([*middles, 0.0]) - min([*middles, 0.0])) or 1.0
    top = min(max([*heights, 0.0]), max([*middles, 0.0]) + 0.75 * span)
    low = max(min([*heights, 0.0]), min([*middles, 0.0]) - 0.75 * span)
    upwards = Axis(low, top)
    across_of, ticks = _across(places, logarithmic=logarithmic)

    def y(value: float) -> float:
        share = (min(max(value, upwards.low), upwards.high) - upwards.low) / (upwards.high - upwards.low)
        return BOTTOM - share * (BOTTOM - TOP)

    body = [*_grid(upwards, y, ticks, across_of)]
    body += [text(LEFT - 56, TOP - 4, unit, "start", "dim"), text(WIDTH - RIGHT, BOTTOM + 34, across, "end", "dim")]
    for mark in marks:
        a, b, x = across_of(mark.low), min(across_of(mark.high), WIDTH - RIGHT), across_of(mark.at)
        tip = f"<title>{escape(clean(mark.label))}</title>"
        body.append(
            f'<rect class="s{mark.series % COLOURS} band" x="{a:.1f}" y="{TOP}" width="{max(1.0, b - a):.1f}" '
            f'height="{BOTTOM - TOP}">{tip}</rect><line class="s{mark.series % COLOURS} mark" x1="{x:.1f}" '
            f'x2="{x:.1f}" y1="{TOP}" y2="{BOTTOM}"/>'
        )
    for line in lines:
        body += _drawn(line, across_of, y, unit)
    keys = [(line.label, line.series, line.dash) for line in lines]
    return svg(HEIGHT, body, title) + _legend([*keys, *((mark.label, mark.series, 0) for mark in marks)])


def _drawn(line: Line, x: Callable[[float], float], y: Callable[[float], float], unit: str) -> list[str]:
    kind, body = f"s{line.series % COLOURS}", []
    points = " ".join(f"{x(dot.at):.1f},{y(dot.value):.1f}" for dot in line.dots)
    dash = f' stroke-dasharray="{DASHES[line.dash % len(DASHES)]}"' if line.dash % len(DASHES) else ""
    body.append(f'<polyline class="{kind} curve" points="{points}"{dash}/>')
    for dot in line.dots:
        at, words = x(dot.at), f"{line.label}, {dot.name}: {digits(dot.value)}"
        if dot.low is not None and dot.high is not None:
            words += f" [{digits(dot.low)}, {digits(dot.high)}]"
            top, bottom = y(dot.high), y(dot.low)
            body.append(f'<line class="{kind} whisker" x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        tip = f"<title>{escape(clean(words))} {escape(unit)}</title>"
        body.append(f'<circle class="{kind}" cx="{at:.1f}" cy="{y(dot.value):.1f}" r="4">{tip}</circle>')
    return body


def _grid(upwards: Axis, y: Callable[[float], float], ticks: Sequence[float], x: Callable[[float], float]) -> list[str]:
    body, count = [], round((upwards.high - upwards.low) / upwards.step)
    decimals = max(0, -math.floor(math.log10(upwards.step)))
    for n in range(count + 1):
        value = upwards.low + n * upwards.step
        kind = "zero" if abs(value) < upwards.step / 1e6 else "grid"
        body.append(f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        body.append(text(LEFT - 8, y(value) + 4, f"{value:.{decimals}f}".replace("-", "−"), "end", "dim"))
    for tick in ticks:
        body.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{BOTTOM}" y2="{BOTTOM + 5}"/>')
        body.append(text(x(tick), BOTTOM + 18, f"{tick:,.12g}", "middle", "dim"))
    return body


def _across(places: Sequence[float], *, logarithmic: bool) -> tuple[Callable[[float], float], list[float]]:
    """Where a place is in the picture, and the ticks. On a logarithmic axis zero is a decade before the least."""
    room = WIDTH - RIGHT - LEFT - 24
    if not logarithmic:
        scale = Axis(min(0.0, *places) if places else 0.0, max(places, default=1.0))
        count = round((scale.high - scale.low) / scale.step)
        ticks = [round(scale.low + n * scale.step, 9) for n in range(count + 1)]
        return lambda at: LEFT + 12 + (at - scale.low) / (scale.high - scale.low) * room, ticks
    positive = [place for place in places if place > 0] or [1.0]
    least, most = min(positive), max(positive)
    floor = least / 10 if min(places) <= 0 else least
    decades = math.log10(most / floor) or 1.0

    def x(at: float) -> float:
        return LEFT + 12 + (math.log10(max(at, floor) / floor) / decades) * room

    powers = [10.0**n for n in range(math.ceil(math.log10(least)), math.floor(math.log10(most)) + 1)]
    return x, [*([0.0] if min(places) <= 0 else []), *(powers if len(powers) > 1 else sorted(set(positive)))]


def _legend(keys: Sequence[tuple[str, int, int]]) -> str:
    """(name, colour, dash) of each line; as `plots.legend`, where colours are in order and lines are not dashed."""
    shown = (
        f'<span><i class="k{series % COLOURS} d{dash % len(DASHES)}"></i>{escape(clean(name))}</span>'
        for name, series, dash in keys
    )
    return f'<p class="legend">{" ".join(shown)}</p>'
