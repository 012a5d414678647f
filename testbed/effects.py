"""What may be said of each plane: ratios to the A/A pair pooled, the pair's own resolution beside them. Pure.

The block goes under the table of a run. Nothing is claimed below the resolution, nor without enough rounds: the cell
then says why (`stats.Effect.why_not`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from testbed import stats
from testbed.model.experiment import Measurement
from testbed.stopping import StopRule
from testbed.table import AA, BASE, Block, Cell, Summary, Table, summarise

METRICS = ("latency_p50", "latency_p90", "latency_p99")
WATCHED = "latency_p50"
"""What `--until-width` waits for: tails take many times the rounds (docs/statistics.md)."""


def effect(summary: Summary, plane: str, metric: str, *, confidence: float = 0.95) -> stats.Effect | None:
    """None where no round has both the plane and the baseline."""
    first, second = summary.rounds(BASE, metric), summary.rounds(AA, metric)
    return stats.effect(summary.rounds(plane, metric), first, second, confidence=confidence)


def watched(
    measurements: Sequence[Measurement], planes: Sequence[str], rule: StopRule
) -> dict[str, stats.Interval | None]:
    """What has to be narrow (`StopRule.after_round`): of every cell, each plane's ratio so far; where `none` is the
    only plane, the A/A pair's own."""
    others = [plane for plane in planes if plane != BASE]
    ratios: dict[str, stats.Interval | None] = {}
    for cell in dict.fromkeys(m.cell for m in measurements):
        summary = summarise([m for m in measurements if m.cell == cell])
        for plane in others or [AA]:
            found = effect(summary, plane, WATCHED, confidence=rule.confidence)
            ratios[f"{plane} {cell}"] = None if found is None else found.ratio if others else found.aa
    return ratios


def with_effects(built: Table, summary: Summary, rule: Mapping[str, Any] | None = None) -> Table:
    """The table with one more block, where any plane has the rounds that a claim takes: with fewer it would be wide
    intervals and reasons only. `rule` is the `stop_rule` of run.json."""
    stop = StopRule(**rule) if rule else None
    confidence = stop.confidence if stop else 0.95
    planes = [plane for plane in summary.planes if plane not in (BASE, AA)]
    seen = {plane: [effect(summary, plane, metric, confidence=confidence) for metric in METRICS] for plane in planes}
    if all(one is None or one.ratio.rounds < stats.MIN_ROUNDS_TO_CLAIM for found in seen.values() for one in found):
        return built
    rows, notes = [], list(built.notes)
    for plane, effects in seen.items():
        cells = [Cell(lines=(plane,))]
        for found in effects:
            if found is None:
                cells.append(Cell(lines=("–",), tone="weak"))
            elif found.claimed:
                cells.append(Cell(lines=(found.text,)))
            else:
                if found.why_not not in notes:
                    notes.append(found.why_not)
                cells.append(Cell(lines=(found.text,), tone="weak", note=notes.index(found.why_not) + 1))
        rows.append(tuple(cells))
    head = ("plane", *(metric.removeprefix("latency_") for metric in METRICS))
    wide = f", each at {confidence:.1%} for {len(stop.looks)} looks" if stop and len(stop.looks) > 1 else ""
    title = f"Ratio to {BASE} (A/A pair pooled), trimmed mean over rounds [95 %{wide}]"
    block = Block(title=title, head=head, rows=tuple(rows), numeric=False)
    return Table(blocks=(*built.blocks[:1], block, *built.blocks[1:]), notes=tuple(notes))
