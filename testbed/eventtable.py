"""The table of a run in which something happened: who was hit, for how long, what broke. Pure.

A row an event, a column a plane; then each stream by itself. Figures are medians over rounds with the range of all.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from testbed.eventseen import EVENT, Seen, seen, spread
from testbed.model.experiment import Finding, Measurement
from testbed.table import Block, Table, build, summarise
from testbed.table import Cell as Entry

NOTHING = Entry(lines=("–",), tone="weak")
FAILED = "failed: requests since the event that were not answered with 200, of all; a request waits for one second"
GAP = "gap: longest time without an answered request; recovered: first answer after the last failure, from the event on"
HELD = (
    "held: connections that were open; broken: ended by another than their client, or silent for too long; moved: "
    "opened anew without having broken"
)

TOLD = (
    ("renewals", "{:.0f}", "renewed {} times under load"),
    ("certificates_ended", "{:.1f}", "certificates ended after {} s"),
    ("ca_back", "{:.1f}", "the CA back after {} s"),
    ("new_leaves", "{:.1f}", "leaves of the new root after {} s"),
    ("old_root_forgotten", "{:.1f}", "the old root forgotten after {} s"),
    ("clock_right", "{:.1f}", "right again after {} s"),
)
"""(metric, form, words) of what only some kinds of event have."""


def table_of(info: Mapping[str, Any], measurements: Sequence[Measurement], findings: Sequence[Finding]) -> Table:
    experiment = info["plan"]["experiment"]
    planes, cells = list(experiment["planes"]), [cell["name"] for cell in experiment["cells"]]
    found = seen(measurements)
    notes = [FAILED, GAP, HELD]
    blocks = [_events(found, planes, cells), *(_streams(found, planes, cell) for cell in cells)]
    blocks.append(_trials(measurements, planes, cells, notes))
    whole = build(summarise(measurements, order=planes), findings)
    blocks += [_told(block, whole.notes, notes) for block in whole.blocks if block.title.startswith("Boundaries")]
    return Table(blocks=tuple(b for b in blocks if b.rows), notes=tuple(notes))


def _told(block: Block, theirs: Sequence[str], notes: list[str]) -> Block:
    """Rows with something in them, their footnotes among ours."""

    def ours(entry: Entry) -> Entry:
        if entry.note is None:
            return entry
        if theirs[entry.note - 1] not in notes:
            notes.append(theirs[entry.note - 1])
        return replace(entry, note=notes.index(theirs[entry.note - 1]) + 1)

    told = [row for row in block.rows if any(entry.lines != ("–",) for entry in row[1:])]
    return replace(block, rows=tuple(tuple(ours(entry) for entry in row) for row in told))


def _events(found: Seen, planes: Sequence[str], cells: Sequence[str]) -> Block:
    rows = []
    for cell in cells:
        row = [Entry(lines=(cell,))]
        for plane in planes:
            row.append(_event(found, plane, cell) if found.count(plane, cell) else NOTHING)
        rows.append(tuple(row))
    return Block(
        title="What happened, whom it touched, what was restarted", head=("event", *planes), rows=tuple(rows),
        numeric=False,
    )  # fmt: skip


def _event(found: Seen, plane: str, cell: str) -> Entry:
    if not found.most(plane, cell, [EVENT], "components"):
        return Entry(lines=("no such part here",), tone="weak")
    hit, unsure = [], []
    for stream in found.streams(plane, cell, meant_to_fail=False):
        touched = found.touched(plane, cell, stream)
        if touched is not False:
            (hit if touched else unsure).append(stream.partition(",")[0])
    pairs, some = list(dict.fromkeys(hit)), [pair for pair in dict.fromkeys(unsure) if pair not in hit]
    lines = ["hit: " + ("; ".join(pairs) or "nobody")]
    if some:
        lines.append("in some rounds: " + "; ".join(some))
    back = found.get(plane, cell, EVENT, "lasted")
    apps = found.get(plane, cell, EVENT, "workloads_restarted")
    lines.append(f"over after {spread(back, '{:.2f}')} s; workloads restarted: {spread(apps)}")
    for what, form, say in TOLD:
        if values := found.get(plane, cell, EVENT, what):
            lines.append(say.format(spread(values, form)))
    return Entry(lines=tuple(lines))


def _tells(found: Seen, plane: str, cell: str) -> bool:
    """Whether the event has instants of its own, which failures can be held against."""
    return any(found.get(plane, cell, EVENT, metric) for metric, *_ in TOLD)


def _streams(found: Seen, planes: Sequence[str], cell: str) -> Block:
    shown = [plane for plane in planes if found.count(plane, cell)]
    names = list(dict.fromkeys(name for plane in shown for name in found.streams(plane, cell)))
    rows = tuple(
        (Entry(lines=(name,)), *(_stream(found, plane, cell, name) for plane in shown)) for name in names
    )
    return Block(title=cell, head=("stream", *shown), rows=rows, numeric=False)


def _stream(found: Seen, plane: str, cell: str, name: str) -> Entry:
    failed = found.get(plane, cell, name, "failed")
    if not failed:
        return NOTHING
    asked = found.get(plane, cell, name, "requests_since")
    if not any(asked):
        return NOTHING  # it begins after the window's end
    before = found.most(plane, cell, [name], "failed_before")
    of = f"of {statistics.median(asked):.0f}"
    lines = [f"failed {spread(failed)} {of}"]
    meant = any(found.get(plane, cell, name, "meant_to_fail"))
    if meant:
        first, last = (found.get(plane, cell, name, metric) for metric in ("first_failure", "last_success"))
        lines = [f"not served {spread(failed)} {of}, {before:.0f} before"]
        if any(failed):
            served = f"last served {spread(last, '{:.2f}')} s" if last else "none served"
            lines.append(f"first not served {spread(first, '{:.2f}')} s, {served} after it")
    elif any(failed):
        recovered = found.get(plane, cell, name, "recovery")
        lacking = found.count(plane, cell) - len(recovered)
        gap = spread(found.get(plane, cell, name, "longest_gap"), "{:.2f}")
        first = found.get(plane, cell, name, "first_failure") if _tells(found, plane, cell) else ()
        lines.append(f"gap {gap} s{'; first failed after ' + spread(first, '{:.2f}') + ' s' if first else ''}")
        if recovered:
            lines.append(f"recovered after {statistics.median(recovered):.2f} s")
        if lacking:
            lines.append(f"not recovered in {lacking} rounds")
    if held := found.get(plane, cell, name, "connections_held"):
        broken, moved = (found.get(plane, cell, name, f"connections_{how}") for how in ("broken", "moved"))
        lines.append(f"{spread(held)} held: {spread(broken)} broken, {spread(moved)} moved")
    if before and not meant:
        lines.append(f"{before:.0f} failed before")
    return Entry(lines=tuple(lines), tone="bad" if not meant and found.touched(plane, cell, name) else "")


def _trials(
    measurements: Sequence[Measurement], planes: Sequence[str], cells: Sequence[str], notes: list[str]
) -> Block:
    rows = []
    for cell in cells:
        row = [Entry(lines=(cell,))]
        for plane in planes:
            mine = [m for m in measurements if (m.plane, m.cell) == (plane, cell)]
            trials = {m.trial for m in mine}
            why = {m.trial: m.reason for m in mine if not m.valid}
            if not trials:
                row.append(NOTHING)
            elif why:
                notes.append(f"{cell}, {plane}, left out: {'; '.join(dict.fromkeys(why.values()))}")
                tone = "bad" if len(why) == len(trials) else ""
                text = f"{len(trials) - len(why)} of {len(trials)}"
                row.append(Entry(lines=(text,), tone=tone, note=len(notes)))
            else:
                row.append(Entry(lines=(str(len(trials)),)))
        rows.append(tuple(row))
    return Block(title="Trials that count", head=("", *planes), rows=tuple(rows))
