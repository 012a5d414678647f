"""Waterfalls as blocks of a table: medians with intervals, requests in bars of text, what the capture costs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from testbed import stats
from testbed.hops import readback
from testbed.hops.readback import PERCENTS, Bar, Estimate, Hops, Row
from testbed.hops.waterfall import AT, BACK, THERE
from testbed.model.experiment import Measurement
from testbed.table import AA, Block, Cell, Table, digits, interval, signed

BARS = "in bars"
"""Begins the title of blocks that a page draws better."""
TRACK = 36
FILL = {THERE: "█", BACK: "▓", AT: "▒"}


def with_hops(table: Table, measurements: Sequence[Measurement], cells: Sequence[Mapping]) -> Table:
    """Nothing is added to a run without traced cells."""
    names = readback.planes(measurements)
    if not names:
        return table
    notes, blocks = list(table.notes), []
    for plane in names:
        hops = readback.read(measurements, plane)
        if hops is None:
            told = f"{plane}: no traced trial counts; the reasons stand with the trials"
            blocks.append(Block(title=f"Where the time goes under {plane}", head=("",), rows=((_weak(told),),)))
            continue
        blocks += [_figures(hops, notes), _bars(hops)]
    blocks += _overhead(measurements, cells, notes)
    return replace(table, blocks=(*blocks, *table.blocks), notes=tuple(notes))


def _figures(hops: Hops, notes: list[str]) -> Block:
    rows = [_figure_row(row, hops.whole.get("total_median"), notes) for row in hops.rows]
    if clock := hops.whole.get("clock_off"):
        text = f"{hops.plane}: clocks of packets and of the generator are brought together to {digits(clock.value)} us"
        rows[0] = (replace(rows[0][0], note=_note(notes, text)), *rows[0][1:])
    requests = hops.whole.get("requests")
    over = "of one round" if hops.rounds == 1 else f"[95 % over {hops.rounds} rounds]"
    title = f"Where the time goes under {hops.plane}, us: medians {over}"
    title += f", {requests.value:.0f} requests a round" if requests else ""
    head = ("", "request →", "← answer", "share", *(f"one p{percent}: → ←" for percent in PERCENTS))
    return Block(title=title, head=head, rows=(*rows, *_sums(hops, notes)))


def _sums(hops: Hops, notes: list[str]) -> list[tuple[Cell, ...]]:
    """What hops leave, and what they add up to."""
    rest, whole, lost = (hops.whole.get(metric) for metric in ("remainder_median", "whole", "packets_lost"))
    first = _weak("not explained")
    if lost and lost.value:
        text = f"{hops.plane}: the capture lost {digits(lost.value)} packets a round, so some hops are unknown"
        first = replace(first, note=_note(notes, text))
    elif whole and whole.value < 1:
        text = f"{hops.plane}: every hop is known of {whole.value:.1%} of the requests"
        first = replace(first, note=_note(notes, text))
    shown = {what: [Cell(lines=(_us(hops.shown[p][what]),)) for p in PERCENTS] for what in ("remainder", "total")}
    rows = [(first, _empty(), _empty(), Cell(lines=(f"{rest.value:.1%}" if rest else "–",)), *shown["remainder"])]
    for name, metric, cells in (
        ("at the client's edge", "edge_median", [_empty() for _ in PERCENTS]),
        ("from the intended send", "total_median", shown["total"]),
    ):
        if found := hops.whole.get(metric):
            rows.append((Cell(lines=(name,)), Cell(lines=(_told(found),)), _empty(), _empty(), *cells))
    return rows


def _figure_row(row: Row, total: Estimate | None, notes: list[str]) -> tuple[Cell, ...]:
    there, back = (THERE, BACK) if AT not in row.median else (AT, BACK)
    known = [one.value for one in row.median.values() if one is not None]
    share = f"{sum(known) / total.value:.1%}" if total and total.value and known else "–"
    return (
        Cell(lines=(row.name,)),
        *(_median(row, way, notes) for way in (there, back)),
        Cell(lines=(share,)),
        *(Cell(lines=(_both(row.bars.get(percent, {})),)) for percent in PERCENTS),
    )


def _median(row: Row, way: str, notes: list[str]) -> Cell:
    if way not in row.median:
        return _empty()
    unknown, found, note = row.unknown.get(way, 0.0), row.median[way], None
    if unknown:
        note = _note(notes, f"unknown of up to {unknown:.1%} of a round's requests: a place did not show them")
    if found is None:
        return Cell(lines=("unknown",), tone="weak", note=note)
    return Cell(lines=(_told(found),), note=note)


def _told(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return digits(found.value)
    return f"{digits(found.value)} [{digits(found.low)}, {digits(found.high)}]"


def _both(bars: Mapping[str, Bar]) -> str:
    return " ".join("unknown" if bar.length_us is None else digits(bar.length_us) for bar in bars.values())


def _us(value: float) -> str:
    return "–" if value != value else digits(value)


def _bars(hops: Hops) -> Block:
    rows = []
    for row in hops.rows:
        tracks = (track(row.bars.get(percent, {}), hops.shown[percent]["total"]) for percent in PERCENTS)
        rows.append((Cell(lines=(row.name,)), *(Cell(lines=(line,)) for line in tracks)))
    head = ("", *(f"p{percent}: {_us(hops.shown[percent]['total'])} us" for percent in PERCENTS))
    title = f"{hops.plane} {BARS}: one request, █ with the request, ▓ with the answer, ? unknown"
    return Block(title=title, head=head, rows=tuple(rows))


def track(bars: Mapping[str, Bar], total_us: float, width: int = TRACK) -> str:
    """A line of time; what took any time has one sign at least, what is unknown is a question mark."""
    line = ["·"] * width
    for way, bar in bars.items():
        if bar.length_us is None or bar.start_us is None or not total_us > 0:
            at = width - 1 if way == BACK else 0
            at = at if bar.start_us is None or not total_us > 0 else _at(bar.start_us, total_us, width)
            line[at] = "?"
            continue
        first = _at(bar.start_us, total_us, width)
        last = min(width, round((bar.start_us + bar.length_us) / total_us * width))
        for at in range(first, max(first + 1, last)):
            line[at] = FILL[way]
    return "".join(line)


def _at(time_us: float, total_us: float, width: int) -> int:
    return min(width - 1, max(0, round(time_us / total_us * width)))


def _overhead(measurements: Sequence[Measurement], cells: Sequence[Mapping], notes: list[str]) -> list[Block]:
    """Traced cells against the one with the same load that is not, paired by round."""
    with_, without = ([cell for cell in cells if bool(cell.get("traced")) is traced] for traced in (True, False))
    pairs = [(a["name"], b["name"]) for a in with_ for b in without if a["load"] == b["load"]]
    rows = []
    for plane in dict.fromkeys(m.plane for m in measurements if m.plane != AA):
        for a, b in pairs[:1]:
            row = [Cell(lines=(plane,))]
            for metric in ("latency_p50", "latency_p99"):
                here = [m for m in measurements if m.valid and m.plane == plane and m.metric == metric]
                on, off = ({m.round: m.value for m in here if m.cell == name} for name in (a, b))
                row.append(_median_of(off))
                row.append(_median_of(on))
                row.append(_paired(stats.paired_differences(on, off), notes))
            rows.append(tuple(row))
    if not rows:
        return []
    head = ("plane", *(f"{p}: {what}" for p in ("p50", "p99") for what in ("without", "captured", "paired [95 %]")))
    return [Block(title="What capturing costs: latency ms with and without it", head=head, rows=tuple(rows))]


def _median_of(values: Mapping[int, float]) -> Cell:
    return Cell(lines=(digits(stats.median(list(values.values()))),)) if values else _weak("–")


def _paired(differences: Sequence[float], notes: list[str]) -> Cell:
    if not differences:
        return _weak("–")
    low, high = interval(differences)
    middle = signed(stats.trimmed_mean(differences))
    if low is None or high is None:
        return Cell(lines=(f"{middle} [–]",), tone="weak", note=_note(notes, "too few rounds for an interval"))
    tone = "weak" if low <= 0 <= high else ""
    return Cell(lines=(f"{middle} [{signed(low)}, {signed(high)}]",), tone=tone)


def _weak(text: str) -> Cell:
    return Cell(lines=(text,), tone="weak")


def _empty() -> Cell:
    return Cell(lines=("",))


def _note(notes: list[str], text: str) -> int:
    if text not in notes:
        notes.append(text)
    return notes.index(text) + 1
