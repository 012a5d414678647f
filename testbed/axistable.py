"""Blocks of the table of a sweep beyond latency and CPU by cell: values, slopes, break-even points, ratios. Pure.

Which of them a run has is seen from what it measured, not from its name.
"""

from __future__ import annotations

import math

from testbed import axis, planespec, stats
from testbed.axis import FIGURES, BreakEven, Sweep
from testbed.stats import Interval
from testbed.table import BASE, Block, Cell, digits, signed

WAYPOINT_NODE = "waypoint_node"
USELESS = 1e3
"""An interval wider than so many times what it is about."""


def values(sweep: Sweep, metric: str) -> Block:
    """A row a cell, a column a plane: median over rounds and its interval."""
    figure = FIGURES[metric]
    rows = []
    for place in sweep.places:
        row = [Cell(lines=(place.cell,))]
        for plane in sweep.planes:
            found = sweep.value(plane, place.cell, metric)
            row.append(Cell(lines=("–",), tone="weak") if found is None else Cell(lines=(spanned(found),)))
        rows.append(tuple(row))
    unit = f", {figure.unit}" if figure.unit else ""
    return Block(title=f"{capital(figure.title)}{unit} [95 %]", head=("", *sweep.planes), rows=tuple(rows))


def derived(sweep: Sweep) -> list[Block]:
    """What follows from the cells taken together; empty where nothing does."""
    return [block for block in (break_evens(sweep), slopes(sweep), beside(sweep), against_first(sweep)) if block]


def bases(sweep: Sweep) -> list[tuple[str, str]]:
    """(plane with a waypoint put somewhere, the sidecars it is compared with): ours with ours, Envoy's with Envoy's."""
    found = []
    for plane in sweep.planes:
        name, options = planespec.split(plane)
        base = "envoy-sidecar" if name.startswith("envoy-") else "sidecar"
        if WAYPOINT_NODE in options and base in sweep.planes:
            found.append((plane, base))
    return found


def break_evens(sweep: Sweep) -> Block | None:
    """Per place of the waypoint: what it costs beside sidecars at no distance, how that grows, where it is nothing."""
    rows = []
    for plane, base in bases(sweep):
        found = axis.break_even(sweep, plane, base)
        if found is None:
            continue
        difference = found.difference
        rows.append(
            tuple(
                Cell(lines=(text,))
                for text in (
                    f"{plane} − {base}",
                    spanned(difference.intercept, sign=True),
                    spanned(difference.slope, sign=True),
                    told(found),
                )
            )
        )
    unit = sweep.axis.get("unit", "")
    head = ("p50", f"at 0 {unit}, ms", f"for each {unit} more, ms", f"break-even, {unit}")
    title = f"A waypoint beside two sidecars, over {sweep.axis.get('name', 'the axis')} [95 %]"
    return Block(title=title, head=head, rows=tuple(rows), numeric=False) if rows else None


def told(found: BreakEven) -> str:
    """The crossing in words where it is none, or none one could use."""
    if not math.isfinite(found.difference.slope.high):
        return "not told by so few rounds"
    if found.crossing is None:
        if found.difference.slope.high < 0:
            return "none: it gains with distance"
        return "none: the two are parallel as far as one can tell"
    if found.always_more:
        return "none: it costs more at any distance"
    crossing = spanned(found.crossing)
    return f"{crossing}, beyond what was measured ({digits(found.reach)})" if far(found) else crossing


def far(found: BreakEven) -> bool:
    return found.crossing is not None and found.crossing.estimate > found.reach


def slopes(sweep: Sweep) -> Block | None:
    """Of memory, CPU and counts that grow along a linear axis; a column a metric."""
    if sweep.axis.get("logarithmic"):
        return None
    metrics = [m for m in sweep.axis.get("metrics", ()) if FIGURES[m].component is None]
    metrics = [m for m in metrics if m != "cpu_per_1000_requests"]
    rows = []
    for plane in axis.without_twin(sweep.planes):
        for line in sweep.lines:
            cells = []
            for metric in metrics:
                found = axis.slope(sweep, plane, metric, line)
                cells.append(Cell(lines=("–" if found is None else spanned(found.slope, sign=True),)))
            if any(cell.lines != ("–",) for cell in cells):
                rows.append((Cell(lines=(f"{plane}, {line}" if line else plane,)), *cells))
    head = ("", *(f"{FIGURES[m].title}, {FIGURES[m].unit or 'number'}" for m in metrics))
    title = f"For each one more of {sweep.axis.get('name', 'the axis')} [95 %]"
    return Block(title=title, head=head, rows=tuple(rows), numeric=False) if rows else None


def beside(sweep: Sweep) -> Block | None:
    """The victim's p99 beside a neighbour: to the same alone, and to where it shares nothing with the neighbour."""
    noisy = [place for place in sweep.places if place.beside]
    alone = next((place for place in sweep.places if not place.beside), None)
    if not noisy or alone is None:
        return None
    control, rows = noisy[0], []
    for place in noisy:
        for base in (alone, control):
            if base is place:
                continue
            row = [Cell(lines=(f"{place.cell} to {base.cell}",))]
            for plane in sweep.planes:
                found = axis.ratio(sweep, plane, "latency_p99", place.cell, base.cell)
                row.append(Cell(lines=("–" if found is None else f"× {spanned(found)}",)))
            rows.append(tuple(row))
    title = "The victim's p99 beside a neighbour, as a ratio within rounds [95 %]"
    return Block(title=title, head=("", *sweep.planes), rows=tuple(rows), numeric=False)


def against_first(sweep: Sweep) -> Block | None:
    """Where the first cell was measured twice and no plane is the baseline: every cell beside both halves of it."""
    twin = next((place for place in sweep.places if place.line == "A/A"), None)
    if twin is None or BASE in sweep.planes:
        return None
    first, rows = sweep.places[0], []
    metrics = [m for m in sweep.axis.get("metrics", ()) if m != "config"]
    for place in sweep.places[1:]:
        for plane in sweep.planes if place is not twin else ():
            row = [Cell(lines=(f"{place.cell}, {plane}" if len(sweep.planes) > 1 else place.cell,))]
            for metric in metrics:
                found = stats.effect(
                    sweep.rounds(plane, place.cell, metric),
                    sweep.rounds(plane, first.cell, metric),
                    sweep.rounds(plane, twin.cell, metric),
                )
                if found is None:
                    row.append(Cell(lines=("–",), tone="weak"))
                else:
                    row.append(Cell(lines=(found.text,), tone="" if found.claimed else "weak"))
            rows.append(tuple(row))
    head = ("", *(FIGURES[m].title for m in metrics))
    title = f"Ratio to {first.cell} (A/A pair pooled) [95 %]; pale: not to be claimed"
    return Block(title=title, head=head, rows=tuple(rows), numeric=False) if rows else None


def capital(text: str) -> str:
    return text if text[:1] == "p" and text[1:2].isdigit() else text[:1].upper() + text[1:]


def spanned(found: Interval, *, sign: bool = False) -> str:
    """`1.23 [1.10, 1.36]`; `[–]` where the interval is infinite, or no use: what few rounds leave open."""
    write = signed if sign else digits
    wide = found.high - found.low > USELESS * max(1.0, abs(found.estimate))
    if wide or not (math.isfinite(found.low) and math.isfinite(found.high)):
        return f"{write(found.estimate)} [–]"
    return f"{write(found.estimate)} [{write(found.low)}, {write(found.high)}]"
