"""Waterfalls out of a run's rows again: of each plane its hops in order, over rounds, and those of single requests.
Pure.

Only trials that count are read. The request at a percentile is that of one round: the one whose total is the middle of
all rounds' totals, so that what is drawn is a request that really was.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from testbed import stats
from testbed.hops.waterfall import AT, BACK, THERE
from testbed.model.experiment import Measurement
from testbed.table import AA, interval

HOP, WHOLE = "hop", "hops"
"""Component of a part's rows begins `hop `; that of the rows of the whole is `hops`."""
PERCENTS = (50, 99)
OF_WHOLE = (
    "total_median", "edge_median", "remainder_median", "whole", "requests", "clock_off", "packets_lost",
)  # fmt: skip
_COMPONENT = re.compile(rf"{HOP} (\d+) (\S+) ([{THERE}{BACK}{AT}]) (.+)", re.DOTALL)


def component(number: int, kind: str, label: str) -> str:
    return f"{HOP} {number:02d} {kind} {label}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Over rounds; the interval is None for too few."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A part of one request, in us from when it was intended."""

    start_us: float | None
    length_us: float | None
    """None: unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One hop, both ways. A direction that the hop does not have is not in the mappings."""

    kind: str
    name: str
    median: Mapping[str, Estimate | None]
    """By direction, us; None: unknown in every round."""
    unknown: Mapping[str, float]
    """Share of requests of which it is unknown, the worst round's."""
    bars: Mapping[int, Mapping[str, Bar]]
    """By percentile, by direction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hops:
    """What was seen of one plane."""

    plane: str
    rows: tuple[Row, ...]
    rounds: int
    whole: Mapping[str, Estimate] = field(default_factory=dict)
    """Of OF_WHOLE, over rounds."""
    shown: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """By percentile: `total` and `remainder` of the request that is drawn, us."""

    def kinds(self) -> dict[str, float]:
        """Medians of parts, summed by kind, us."""
        found: dict[str, float] = {}
        for row in self.rows:
            for one in row.median.values():
                found[row.kind] = found.get(row.kind, 0.0) + (one.value if one else 0.0)
        return found


def planes(measurements: Sequence[Measurement]) -> list[str]:
    """Under which something was traced, whether or not it counts."""
    return list(dict.fromkeys(m.plane for m in measurements if m.component == WHOLE and m.plane != AA))


def read(measurements: Sequence[Measurement], plane: str) -> Hops | None:
    """None where no trial of the plane counts."""
    trials: dict[str, list[Measurement]] = {}
    for m in measurements:
        if m.valid and m.plane == plane and (m.component == WHOLE or m.component.startswith(f"{HOP} ")):
            trials.setdefault(m.trial, []).append(m)
    if not trials:
        return None
    drawn = {percent: _middle(trials, f"total_in_p{percent}") for percent in PERCENTS}
    bars = {percent: _bars(rows, percent) for percent, rows in drawn.items()}
    names: dict[tuple[str, str], dict[str, list[Measurement]]] = {}
    for rows in trials.values():
        for m in rows:
            if (found := _COMPONENT.fullmatch(m.component)) and m.metric in ("hop_median", "hop_unknown"):
                names.setdefault((found[2], found[4]), {}).setdefault(found[3], []).append(m)
    return Hops(
        plane=plane,
        rows=tuple(_row(kind, name, by, bars) for (kind, name), by in names.items()),
        rounds=len(trials),
        whole={
            metric: found
            for metric in OF_WHOLE
            if (found := _estimate([m.value for rows in trials.values() for m in rows if m.metric == metric]))
        },
        shown={
            percent: {
                what: next((m.value for m in rows if m.metric == f"{what}_in_p{percent}"), math.nan)
                for what in ("total", "remainder")
            }
            for percent, rows in drawn.items()
        },
    )


def _row(kind: str, name: str, by: Mapping[str, Sequence[Measurement]], bars: Mapping[int, Mapping]) -> Row:
    return Row(
        kind=kind,
        name=name,
        median={way: _estimate([m.value for m in ms if m.metric == "hop_median"]) for way, ms in by.items()},
        unknown={way: max((m.value for m in ms if m.metric == "hop_unknown"), default=0.0) for way, ms in by.items()},
        bars={p: {way: found[way, name] for way in by if (way, name) in found} for p, found in bars.items()},
    )


def _estimate(values: Sequence[float]) -> Estimate | None:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    low, high = interval(known)
    return Estimate(value=stats.trimmed_mean(known), low=low, high=high)


def _middle(trials: Mapping[str, Sequence[Measurement]], metric: str) -> Sequence[Measurement]:
    totals = {name: next((m.value for m in rows if m.metric == metric), math.nan) for name, rows in trials.items()}
    known = {name: value for name, value in totals.items() if math.isfinite(value)}
    if not known:
        return ()
    middle = stats.median(list(known.values()))
    return trials[min(known, key=lambda name: (abs(known[name] - middle), name))]


def _bars(rows: Sequence[Measurement], percent: int) -> dict[tuple[str, str], Bar]:
    """Parts follow each other without a gap, so where one begins is the sum of those before; behind an unknown one it
    is counted from the end instead."""
    parts = []
    for m in rows:
        if m.metric == f"hop_in_p{percent}" and (found := _COMPONENT.fullmatch(m.component)):
            parts.append((int(found[1]), found[3], found[4], m.value if math.isfinite(m.value) else None))
    total = next((m.value for m in rows if m.metric == f"total_in_p{percent}"), None)
    parts.sort()
    starts: list[float | None] = []
    at: float | None = 0.0
    for *_, length in parts:
        starts.append(at)
        at = None if at is None or length is None else at + length
    end = total
    for index in range(len(parts) - 1, -1, -1):
        length = parts[index][3]
        end = None if end is None or length is None else end - length
        if starts[index] is None:
            starts[index] = end
    return {
        (way, name): Bar(start_us=start, length_us=length)
        for (_, way, name, length), start in zip(parts, starts, strict=True)
    }
