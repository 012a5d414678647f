"""The table of a run whose experiment sweeps an axis: a row a cell, a column a plane. Pure.

Every cell is compared within itself: its planes met the same rounds. What a cell may claim stands as in `effects`; what
differs between cells was measured on the same deployments, but is no paired claim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from testbed import axistable, effects, eventtable, parity
from testbed.attack import matrix
from testbed.axis import Sweep
from testbed.fidelitytable import with_fidelity
from testbed.hops.shown import with_hops
from testbed.model.experiment import Finding, Measurement
from testbed.stopping import StopRule
from testbed.table import AA, BASE, Block, Summary, Table, build, digits, summarise
from testbed.table import Cell as Entry


def of(measurements: Sequence[Measurement], cell: str) -> list[Measurement]:
    return [m for m in measurements if m.cell == cell]


def names(info: Mapping[str, Any]) -> list[str]:
    """Of the cells of a run, in the experiment's order; empty for one without an axis."""
    return [cell["name"] for cell in info["plan"]["experiment"].get("cells", ())]


def table_of(info: Mapping[str, Any], measurements: Sequence[Measurement], findings: Sequence[Finding]) -> Table:
    """The table of any run: with an axis a block a metric and what was left out, without one what `table` builds; then
    what the trials' certificates say."""
    if info["plan"]["experiment"].get("streams"):
        built = eventtable.table_of(info, measurements, findings)
        return with_fidelity(built, measurements, info["plan"]["experiment"]["planes"])
    certified = with_fidelity(
        _figures(info, measurements, findings), measurements, info["plan"]["experiment"]["planes"]
    )
    return with_hops(certified, measurements, info["plan"]["experiment"].get("cells", ()))


def _figures(info: Mapping[str, Any], measurements: Sequence[Measurement], findings: Sequence[Finding]) -> Table:
    order = info["plan"]["experiment"]["planes"]
    rule = info.get("stop_rule")
    cells = names(info)
    if not cells:
        summary = summarise(measurements, order=order)
        compared = parity.with_parity(effects.with_effects(build(summary, findings), summary, rule), summary, findings)
        return matrix.with_matrix(compared, findings)
    summaries = {cell: summarise(of(measurements, cell), order=order) for cell in cells}
    planes = list(dict.fromkeys(plane for s in summaries.values() for plane in s.planes))
    notes: list[str] = []
    stop = StopRule(**rule) if rule else None
    confidence = stop.confidence if stop else 0.95
    sweep = Sweep(info, measurements)
    metrics = sweep.axis.get("metrics") or ("latency_p50", "latency_p99", "cpu_per_1000_requests")
    blocks = axistable.derived(sweep)
    for metric in metrics:
        if metric.startswith("latency_") and BASE in planes:
            blocks.append(_latency(metric, summaries, planes, confidence, notes))
        else:
            blocks.append(axistable.values(sweep, metric))
    blocks.append(_trials(summaries, planes, notes))
    whole = build(summarise(of(measurements, cells[0]), order=order), findings)
    blocks += [_moved(block, whole.notes, notes) for block in whole.blocks if block.title.startswith("Boundaries")]
    return Table(blocks=tuple(blocks), notes=tuple(notes))


def _moved(block: Block, theirs: Sequence[str], notes: list[str]) -> Block:
    """With its footnotes numbered among ours."""
    rows = tuple(
        tuple(replace(entry, note=entry.note and _note(notes, theirs[entry.note - 1])) for entry in row)
        for row in block.rows
    )
    return replace(block, rows=rows)


def _note(notes: list[str], text: str) -> int:
    if text not in notes:
        notes.append(text)
    return notes.index(text) + 1


def _latency(
    metric: str, summaries: Mapping[str, Summary], planes: Sequence[str], confidence: float, notes: list[str]
) -> Block:
    rows = []
    for cell, summary in summaries.items():
        row = [Entry(lines=(cell,))]
        for plane in planes:
            value = summary.median(plane, metric)
            if value is None:
                row.append(Entry(lines=("–",), tone="weak"))
                continue
            absolute = f"{digits(value)} ms"
            if plane in (BASE, AA):
                row.append(Entry(lines=(absolute,)))
                continue
            found = effects.effect(summary, plane, metric, confidence=confidence)
            if found is None:
                row.append(Entry(lines=(absolute,)))
            elif found.claimed:
                row.append(Entry(lines=(absolute, found.text)))
            else:
                row.append(Entry(lines=(absolute, found.text), tone="weak", note=_note(notes, found.why_not)))
        rows.append(tuple(row))
    short = metric.removeprefix("latency_")
    title = f"{short} by cell, and its ratio to {BASE} (A/A pair pooled) [95 %]"
    return Block(title=title, head=("", *planes), rows=tuple(rows), numeric=False)


def _trials(summaries: Mapping[str, Summary], planes: Sequence[str], notes: list[str]) -> Block:
    rows = []
    for cell, summary in summaries.items():
        row = [Entry(lines=(cell,))]
        for plane in planes:
            valid, left_out = summary.valid.get(plane, 0), summary.left_out.get(plane, {})
            if not left_out:
                # Of a cell that is not measured under that plane there are none to count.
                row.append(Entry(lines=(str(valid) if valid else "–",), tone="" if valid else "weak"))
                continue
            told = "; ".join(f"{count} × {reason}" for reason, count in left_out.items())
            text = f"{valid} of {valid + sum(left_out.values())}"
            note = _note(notes, f"{cell}, {plane}, left out: {told}")
            row.append(Entry(lines=(text,), tone="" if valid else "bad", note=note))
        rows.append(tuple(row))
    return Block(title="Trials that count", head=("", *planes), rows=tuple(rows))
