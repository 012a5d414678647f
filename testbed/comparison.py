"""Two runs of one experiment beside each other: they agree on what a plane costs, differ by so much, or cannot tell.

Within each run a plane is paired by round with that round's baseline (both halves of the A/A pair pooled, as in
`stats.effect`), so that what the machine was like then falls out of it. Rounds of two runs share nothing: between the
runs the two samples of ratios are compared unpaired (`stats.shift_interval`). The baseline itself, and planes of an
experiment without one, are compared as they are, drift of the machine included.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from testbed import cells, stats, table
from testbed.errors import UsageError
from testbed.model.experiment import Measurement
from testbed.stats import Interval
from testbed.store import Run
from testbed.table import AA, BASE, Summary

METRICS = ("latency_p50", "latency_p99")
ALIKE = 0.1
"""Runs agree where the whole interval is within a tenth."""
BESIDE = f"beside {BASE} (A/A pair pooled) of the same round in each run; between runs unpaired, for they share none"
DRIFT = "as it is: drift of the machine between the runs is in it, and no claim is made of it"


class Agreement(StrEnum):
    AGREES = "agrees"
    DIFFERS = "differs"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric under one plane of one cell."""

    cell: str
    """Empty where the experiment has no axis."""
    plane: str
    metric: str
    a_ms: float
    """Median over the rounds of each run."""
    b_ms: float
    ratio: Interval
    """B to A; of the plane's ratios to its baseline, where `beside`."""
    beside: bool
    resolution: float | None
    """The far end of the A/A pair's ratio, of the run in which it is farther; None where either has none."""

    @property
    def why_not(self) -> str:
        """Why no difference may be claimed, or nothing; the rules are those of `stats.Effect`."""
        if self.ratio.rounds < stats.MIN_ROUNDS_TO_CLAIM:
            return f"{self.ratio.rounds} rounds in one; a claim takes {stats.MIN_ROUNDS_TO_CLAIM} in each"
        if self.ratio.holds(1.0):
            return "the interval holds no difference, and more than a tenth"
        if not self.beside:
            return "drift of the machine is in it"
        if self.resolution is None:
            return "no A/A pair in these rounds, so no resolution"
        if not abs(math.log(self.ratio.estimate)) > math.log1p(self.resolution):
            return "below the resolution: an A/A pair of one of the runs is as far apart"
        return ""

    @property
    def verdict(self) -> Agreement:
        if not self.why_not:
            return Agreement.DIFFERS
        enough = self.ratio.rounds >= stats.MIN_ROUNDS_TO_CLAIM
        alike = self.ratio.low >= 1 / (1 + ALIKE) and self.ratio.high <= 1 + ALIKE
        return Agreement.AGREES if enough and alike else Agreement.CANNOT_TELL

    @property
    def text(self) -> str:
        """`differs by +12.0 % [+8.1, +16.2]`."""
        low, middle, high = ((x - 1) * 100 for x in (self.ratio.low, self.ratio.estimate, self.ratio.high))
        if self.verdict is Agreement.AGREES:
            return f"agrees within ±{max(abs(low), abs(high)):.1f} %"
        # Beyond a hundredfold it is no interval one could use.
        span = f"{middle:+.1f} % [{low:+.1f}, {high:+.1f}]" if high < 1e4 else f"{middle:+.1f} % [–]"
        return f"{self.verdict} {'by ' * (self.verdict is Agreement.DIFFERS)}{span}".replace("-", "−")


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
    unlike: tuple[str, ...] = ()
    """What else differs between the runs: of the experiment, and what it ran on."""


def compare(run_a: Path | str, run_b: Path | str) -> Comparison:
    """Planes that both have, in the order of A. Raises UsageError for runs of two experiments."""
    first, second = Run.open(run_a), Run.open(run_b)
    names = first.info["experiment"], second.info["experiment"]
    if names[0] != names[1]:
        raise UsageError(f"cannot compare a run of {names[0]} with one of {names[1]}: pass two runs of one experiment")
    mine, theirs = first.measurements(), second.measurements()
    differences: list[Difference] = []
    for cell in cells.names(first.info) or [""]:
        differences += _of_cell(cell, *(_summary(rows, cell) for rows in (mine, theirs)))
    a, b = table.summarise(mine), table.summarise(theirs)
    return Comparison(
        experiment=names[0],
        a=first.info["run"],
        b=second.info["run"],
        differences=tuple(differences),
        only_a=tuple(plane for plane in a.planes if plane not in b.planes),
        only_b=tuple(plane for plane in b.planes if plane not in a.planes),
        unlike=unlike(first.info, second.info),
    )


def _summary(measurements: list[Measurement], cell: str) -> Summary:
    return table.summarise(cells.of(measurements, cell))


def _of_cell(cell: str, a: Summary, b: Summary) -> list[Difference]:
    return [
        found
        for plane in a.planes
        if plane in b.planes
        for metric in METRICS
        if (found := difference(a, b, plane, metric, cell=cell)) is not None
    ]


def difference(a: Summary, b: Summary, plane: str, metric: str, *, cell: str = "") -> Difference | None:
    """None where either run has no round of it that counts."""
    before, after = a.rounds(plane, metric), b.rounds(plane, metric)
    bases = [stats.pooled(run.rounds(BASE, metric), run.rounds(AA, metric)) for run in (a, b)]
    beside = plane not in (BASE, AA) and all(bases)
    logs = [
        [math.log(mine[n] / (base[n] if beside else 1.0)) for n in sorted(mine) if not beside or n in base]
        for mine, base in zip((before, after), bases, strict=True)
    ]
    if not all(logs):
        return None
    return Difference(
        cell=cell,
        plane=plane,
        metric=metric,
        a_ms=statistics.median(before.values()),
        b_ms=statistics.median(after.values()),
        ratio=stats.exponential(stats.shift_interval(*logs)),
        beside=beside,
        resolution=_resolution(a, b, metric),
    )


def _resolution(a: Summary, b: Summary, metric: str) -> float | None:
    pairs = [stats.effect(run.rounds(AA, metric), run.rounds(BASE, metric), run.rounds(AA, metric)) for run in (a, b)]
    ends = [None if pair is None else pair.resolution for pair in pairs]
    return None if None in ends else max(end for end in ends if end is not None)


def unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of what was not the same: two runs under one name may have asked different things."""
    mine, theirs = a["plan"], b["plan"]
    asked = [
        f"experiment: {key}"
        for key in {**mine["experiment"], **theirs["experiment"]}
        if mine["experiment"].get(key) != theirs["experiment"].get(key) and key not in ("name", "question", "claims")
    ]
    ran_on = ["topology"] if mine.get("topology") != theirs.get("topology") else []
    ran_on += [key for key in ("runtime", "link_kind", "commit", "machine") if a.get(key) != b.get(key)]
    return (*asked, *ran_on)


def as_table(compared: Comparison) -> table.Table:
    """A note at every difference says how it was compared; a plane of one run only has a row of dashes and says so."""
    notes: list[str] = []

    def number(text: str) -> int:
        if text not in notes:
            notes.append(text)
        return notes.index(text) + 1

    rows = []
    for one in compared.differences:
        place = table.Cell(lines=(f"{one.plane}, {one.cell}" if one.cell else one.plane,))
        texts = (one.metric, table.digits(one.a_ms), table.digits(one.b_ms))
        sure = one.verdict is not Agreement.CANNOT_TELL
        told = table.Cell(
            lines=(one.text,), tone="" if sure else "weak", note=number(BESIDE if one.beside else DRIFT)
        )
        why = table.Cell(lines=("" if sure else one.why_not,), tone="weak")
        rows.append((place, *(table.Cell(lines=(text,)) for text in texts), told, why))
    dash = table.Cell(lines=("–",), tone="weak")
    for run, planes in (("A", compared.only_a), ("B", compared.only_b)):
        for plane in planes:
            note = number(f"only in {run}, so not compared")
            rows.append((table.Cell(lines=(plane,), note=note), *[dash] * 5))
    head = ("plane", "metric", "A ms", "B ms", "B to A [95 %]", "why not told")
    title = f"A = {compared.a}, B = {compared.b}"
    if compared.unlike:
        title += f"; not the same in both: {', '.join(compared.unlike)}"
    return table.Table(
        blocks=(table.Block(title=title, head=head, rows=tuple(rows), numeric=False),), notes=tuple(notes)
    )


def as_json(compared: Comparison) -> dict[str, Any]:
    """What the table shows, in numbers that are not rounded."""
    return {
        "experiment": compared.experiment,
        "a": compared.a,
        "b": compared.b,
        "differences": [
            {
                "cell": one.cell, "plane": one.plane, "metric": one.metric, "a_ms": one.a_ms, "b_ms": one.b_ms,
                "ratio": one.ratio.estimate, "low": _told(one.ratio.low), "high": _told(one.ratio.high),
                "rounds": one.ratio.rounds,
                "beside_baseline": one.beside, "resolution": _told(one.resolution), "verdict": one.verdict.value,
                "why_not": "" if one.verdict is not Agreement.CANNOT_TELL else one.why_not,
            }
            for one in compared.differences
        ],
        "only_a": compared.only_a,
        "only_b": compared.only_b,
        "unlike": compared.unlike,
    }  # fmt: skip


def _told(value: float | None) -> float | None:
    """JSON has no infinity: an interval that few rounds leave open has no end."""
    return value if value is not None and math.isfinite(value) and 0 < value < math.exp(700) else None
