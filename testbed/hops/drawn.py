"""Waterfalls as inline SVG: a line a hop, its way there and its way back on one scale of time. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from testbed import plots
from testbed.hops import readback
from testbed.hops.readback import PERCENTS, Bar, Hops
from testbed.hops.route import APP, CLIENT, NODE, PROXY, VETH, WIRE
from testbed.hops.waterfall import BACK
from testbed.model.experiment import Measurement
from testbed.plots import LEFT, RIGHT, WIDTH, Axis, svg, text
from testbed.table import digits
from testbed.typeset import clean

ROW = 20
FIGURES = 120
"""Width of the column of figures, right of the bars."""
KINDS = {
    CLIENT: "load generator", VETH: "veth pairs", WIRE: "links", PROXY: "proxies", APP: "application",
    NODE: "nodes forward",
}  # fmt: skip
"""In the order of the page's colours."""


def page(measurements: Sequence[Measurement]) -> str:
    """The section of a report; nothing for a run without traced cells."""
    names = readback.planes(measurements)
    if not names:
        return ""
    found = [(name, readback.read(measurements, name)) for name in names]
    seen = [hops for _, hops in found if hops is not None]
    parts = ["<h2>Where the time goes</h2>"]
    if seen:
        rows = [
            plots.BarRow(label=hops.plane, parts={KINDS[kind]: us for kind, us in hops.kinds().items()})
            for hops in seen
        ]
        title = "Medians of every hop, both ways, summed by kind (they do not add up to the median of the whole)"
        parts.append(plots.bars(rows, names=list(KINDS.values()), unit="us", title=title))
    for name, hops in found:
        if hops is None:
            parts.append(f"<p class=dim>{escape(clean(name))}: no traced trial counts.</p>")
            continue
        parts += [waterfall(hops, percent) for percent in PERCENTS]
    return "".join(parts)


def waterfall(hops: Hops, percent: int) -> str:
    """One request that really was; from left to right its time, from top to bottom its way. Colours are those of the
    figure above, which has the legend."""
    total = hops.shown[percent]["total"]
    rest = hops.shown[percent]["remainder"]
    axis = _Narrow(0.0, total if total > 0 else 1.0)
    bottom = 12 + ROW * len(hops.rows)
    body = [axis.draw(bottom, "us from when it was to be sent")]
    for number, row in enumerate(hops.rows):
        y = 12 + ROW * number
        body.append(text(LEFT - 10, y + 14, row.name, "end"))
        told = []
        for way, bar in row.bars.get(percent, {}).items():
            body.append(_bar(axis, bar, y, kind=row.kind, label=f"{way} {row.name}", back=way == BACK))
            told.append(f"{way} {'unknown' if bar.length_us is None else digits(bar.length_us)}")
        body.append(text(WIDTH - RIGHT, y + 14, "  ".join(told), "end", "dim"))
    share = f"{rest / total:.1%}" if total > 0 else "–"
    title = f"{hops.plane}: the request at p{percent}, {digits(total)} us, {digits(rest)} us ({share}) not explained"
    return svg(bottom + 36, body, title)


def _bar(axis: Axis, bar: Bar, y: float, *, kind: str, label: str, back: bool) -> str:
    if bar.length_us is None:
        at = axis.x(bar.start_us) if bar.start_us is not None else axis.x(axis.high if back else axis.low)
        return text(at, y + 14, "?", "middle", "strong")
    if bar.start_us is None:
        return ""  # between two unknown ones: how long is known, and stands at the end of the line; where is not
    start = axis.x(bar.start_us)
    width = max(1.5, axis.x(bar.start_us + bar.length_us) - start)
    tip = f"<title>{escape(clean(label))}: {digits(bar.length_us)} us</title>"
    series = list(KINDS).index(kind) % 8 if kind in KINDS else 7
    return f'<rect class="s{series}" x="{start:.1f}" y="{y + 3}" width="{width:.1f}" height="14">{tip}</rect>'


class _Narrow(Axis):
    """As `Axis`, with room for figures at its right."""

    def x(self, value: float) -> float:
        return LEFT + (value - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT - FIGURES)

