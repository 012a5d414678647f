"""Two runs of one experiment beside each other: what each plane's latency was in A, in B, and B minus A.

Unpaired: rounds of two runs share nothing, so drift of the machine between them is in the difference.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from testbed import table
from testbed.errors import UsageError
from testbed.store import Run

METRICS = ("latency_p50", "latency_p99")
NOTE = "unpaired: two runs share no rounds, so drift of the machine between them is in the difference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric under one plane; medians over the rounds of each run."""

    plane: str
    metric: str
    a_ms: float
    b_ms: float
    change_ms: float
    """B minus A."""
    low_ms: float | None
    """Of the 95 % interval; None where a run has too few rounds for one."""
    high_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    experiment: str
    a: str
    """Name of the run."""
    b: str
    differences: tuple[Difference, ...]
    only_a: tuple[str, ...] = ()
    """Planes that the other run does not have."""
    only_b: tuple[str, ...] = ()
    note: str = NOTE


def compare(run_a: Path | str, run_b: Path | str) -> Comparison:
    """Planes that both have, in the order of A. Raises UsageError for runs of two experiments."""
    first, second = Run.open(run_a), Run.open(run_b)
    names = first.info["experiment"], second.info["experiment"]
    if names[0] != names[1]:
        raise UsageError(f"cannot compare a run of {names[0]} with one of {names[1]}: pass two runs of one experiment")
    a, b = table.summarise(first.measurements()), table.summarise(second.measurements())
    differences = []
    for plane in [plane for plane in a.planes if plane in b.planes]:
        for metric in METRICS:
            before, after = list(a.rounds(plane, metric).values()), list(b.rounds(plane, metric).values())
            if not before or not after:
                continue
            low, high = table.unpaired_interval(before, after)
            a_ms, b_ms = statistics.median(before), statistics.median(after)
            differences.append(
                Difference(
                    plane=plane, metric=metric, a_ms=a_ms, b_ms=b_ms, change_ms=b_ms - a_ms, low_ms=low, high_ms=high
                )
            )
    return Comparison(
        experiment=names[0],
        a=first.info["run"],
        b=second.info["run"],
        differences=tuple(differences),
        only_a=tuple(plane for plane in a.planes if plane not in b.planes),
        only_b=tuple(plane for plane in b.planes if plane not in a.planes),
    )


def as_table(compared: Comparison) -> table.Table:
    """What unpaired means is a note at every difference; a plane of one run only has a row of dashes and says so."""
    notes: list[str] = []

    def number(text: str) -> int:
        if text not in notes:
            notes.append(text)
        return notes.index(text) + 1

    rows = []
    for one in compared.differences:
        interval = "–" if one.low_ms is None else f"[{table.digits(one.low_ms)}, {table.digits(one.high_ms)}]"
        texts = (one.plane, one.metric, table.digits(one.a_ms), table.digits(one.b_ms))
        change = table.Cell(lines=(table.digits(one.change_ms),), note=number(compared.note))
        rows.append((*(table.Cell(lines=(text,)) for text in texts), change, table.Cell(lines=(interval,))))
    dash = table.Cell(lines=("–",), tone="weak")
    for run, planes in (("A", compared.only_a), ("B", compared.only_b)):
        for plane in planes:
            note = number(f"only in {run}, so not compared")
            rows.append((table.Cell(lines=(plane,), note=note), *[dash] * 5))
    head = ("plane", "metric", "A ms", "B ms", "B − A ms", "95 %")
    title = f"A = {compared.a}, B = {compared.b}"
    return table.Table(blocks=(table.Block(title=title, head=head, rows=tuple(rows)),), notes=tuple(notes))
