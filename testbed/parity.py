"""One plane on two runtimes, beside each other: findings, latency and CPU of `sidecar@docker` against `sidecar`. Pure.

Paired: both were deployed in every round. What no difference looks like is the A/A pair's resolution, as in `effects`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from testbed import effects, stats
from testbed.model.experiment import Finding
from testbed.planespec import runtime_of, without_runtime
from testbed.table import Block, Cell, Summary, Table

METRICS = (("p50", "latency_p50", "client"), ("p99", "latency_p99", "client"), ("CPU", "cpu_per_1000_requests", None))
"""Head, metric and component; None is the sum over proxies."""


def pairs(planes: Sequence[str]) -> list[tuple[str, str]]:
    """(plane, the same on another runtime) of all that a run has both of."""
    return [(base, other) for other in planes if runtime_of(other) and (base := without_runtime(other)) in planes]


def effect(summary: Summary, base: str, other: str, metric: str, component: str | None) -> stats.Effect | None:
    """`other` as a ratio to `base`; None where no round has both. What the A/A pair shows is that of plane `none`."""
    found = stats.effect(summary.rounds(other, metric, component), summary.rounds(base, metric, component), {})
    chance = effects.effect(summary, other, metric) if component is not None else None
    return found if found is None or chance is None else replace(found, aa=chance.aa, resolution=chance.resolution)


def differing(findings: Sequence[Finding], base: str, other: str) -> list[str]:
    """Findings that one has and the other has not, or not with this result: `id: holds, broken`."""
    theirs = [
        {f"{f.id.replace(plane, base, 1)} {f.segment}": str(f.result) for f in findings if f.plane == plane}
        for plane in (base, other)  # those of packets begin with their plane's name
    ]
    keys = sorted(theirs[0].keys() | theirs[1].keys())
    return [
        f"{key}: {theirs[0].get(key, 'none')}, {theirs[1].get(key, 'none')}"
        for key in keys
        if theirs[0].get(key) != theirs[1].get(key)
    ]


def with_parity(built: Table, summary: Summary, findings: Sequence[Finding]) -> Table:
    """The table with one more block where some plane was deployed on two runtimes."""
    rows, notes = [], list(built.notes)

    def note(text: str) -> int:
        if text not in notes:
            notes.append(text)
        return notes.index(text) + 1

    for base, other in pairs(summary.planes):
        count = sum(f.plane == other for f in findings)
        apart = differing(findings, base, other)
        same = Cell(lines=(f"{count} the same",)) if not apart else Cell(
            lines=(f"{len(apart)} of {count} differ",), tone="bad", note=note("; ".join(apart))
        )  # fmt: skip
        cells = [Cell(lines=(other,)), same]
        for _, metric, component in METRICS:
            found = effect(summary, base, other, metric, component)
            if found is None:
                cells.append(Cell(lines=("–",), tone="weak"))
            else:
                why = found.why_not if component is not None else ""
                cells.append(Cell(lines=(found.text,), tone="weak" if why else "", note=note(why) if why else None))
        rows.append(tuple(cells))
    if not rows:
        return built
    head = ("plane", "findings", *(head for head, _, _ in METRICS))
    title = "Ratio to the same plane on the other runtime, trimmed mean over rounds [95 %]"
    block = Block(title=title, head=head, rows=tuple(rows), numeric=False)
    return Table(blocks=(*built.blocks[:1], block, *built.blocks[1:]), notes=tuple(notes))
