"""Shapes that published measurements of Istio's data planes have, and whether reference runs have them too. Pure.

Absolute figures of other machines and other proxies say nothing here; what may carry over is an order, a range of
ratios, a sign that changes. Ranges are those of Istio's performance page (1.20 to 1.24) and of Solo.io's raw data of
2024, with room for both where they disagree. A shape came out where the whole interval is within the range, did not
where all of it is outside, and is not decided in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from testbed import axis, axistable, stats
from testbed.attack import matrix
from testbed.axis import Sweep
from testbed.axistable import spanned
from testbed.eventseen import Seen, seen
from testbed.model.experiment import Finding, Measurement
from testbed.stats import Interval
from testbed.table import AA, BASE, Summary, digits, summarise

if TYPE_CHECKING:
    from testbed.store import Run

RESAMPLES = 10_000
LATENCIES = ("latency_p50", "latency_p90", "latency_p99")


class Result(StrEnum):
    CAME_OUT = "came out"
    DID_NOT = "did not"
    UNDECIDED = "not decided"
    NO_RUN = "no run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """One run, as it was stored."""

    info: Mapping[str, Any]
    measurements: Sequence[Measurement]
    findings: Sequence[Finding]

    @property
    def summary(self) -> Summary:
        return summarise(self.measurements, order=self.info["plan"]["experiment"]["planes"])

    @property
    def sweep(self) -> Sweep:
        return Sweep(self.info, self.measurements)


def of(run: Run) -> Data:
    return Data(info=run.info, measurements=run.measurements(), findings=run.findings())


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    result: Result
    told: str


Runs = Mapping[str, Data]
"""By experiment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    text: str
    """As published."""
    experiments: tuple[str, ...]
    """All of them are needed; none: any will do."""
    look: Callable[[Runs], Observed]


def looked(runs: Runs) -> list[tuple[Shape, Observed]]:
    """Every shape, with what these runs say of it."""
    found = []
    for shape in SHAPES:
        lacking = [name for name in shape.experiments if name not in runs]
        none = Observed(result=Result.NO_RUN, told=f"takes a run of {', '.join(lacking)}")
        found.append((shape, none if lacking or not runs else shape.look(runs)))
    return found


def within(found: Interval, low: float, high: float) -> Result:
    if found.rounds < stats.MIN_ROUNDS_TO_CLAIM:
        return Result.UNDECIDED
    if low <= found.low and found.high <= high:
        return Result.CAME_OUT
    return Result.DID_NOT if found.high < low or found.low > high else Result.UNDECIDED


def quotient(above: Mapping[int, float], below: Mapping[int, float]) -> Interval | None:
    """Of two trimmed means over the rounds that have both; percentiles of resampled rounds: a quotient has no mean."""
    shared = sorted(above.keys() & below.keys())
    if len(shared) < 3:
        return None
    values = np.array([[above[n], below[n]] for n in shared])
    chance = np.random.Generator(np.random.PCG64(0))
    drawn = np.sort(values[chance.integers(0, len(shared), (RESAMPLES, len(shared)))], axis=1)
    cut = int(stats.TRIM * len(shared))
    means = drawn[:, cut : len(shared) - cut].mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.nanquantile(means[:, 0] / means[:, 1], [0.025, 0.975])
    whole = np.sort(values, axis=0)[cut : len(shared) - cut].mean(axis=0)
    return Interval(low=float(low), estimate=float(whole[0] / whole[1]), high=float(high), rounds=len(shared))


def _all(results: Sequence[Result]) -> Result:
    if set(results) == {Result.CAME_OUT}:
        return Result.CAME_OUT
    return Result.DID_NOT if Result.DID_NOT in results else Result.UNDECIDED


def _lacking(what: str) -> Observed:
    return Observed(result=Result.UNDECIDED, told=f"too few trials that count for {what}")


def _bands(
    values: Callable[[str], Mapping[int, float]], bands: Sequence[tuple[str, str, float, float]], what: str
) -> Observed:
    """(plane, plane below it, low, high)."""
    told, results = [], []
    for plane, base, low, high in bands:
        found = quotient(values(plane), values(base))
        if found is None:
            return _lacking(f"{what} of {plane} and {base} in three rounds")
        results.append(within(found, low, high))
        told.append(f"{plane} to {base} {spanned(found)} ({digits(low)} to {digits(high)}: {results[-1].value})")
    return Observed(result=_all(results), told=f"{what}: {'; '.join(told)}")


def _cpu(runs: Runs) -> Observed:
    summary = runs["quickstart"].summary
    bands = (("ambient-l4", "sidecar", 0.2, 0.5), ("ambient", "sidecar", 0.7, 1.1))
    return _bands(lambda plane: summary.rounds(plane, "cpu_per_1000_requests", None), bands, "CPU of the proxies")


def _added(runs: Runs) -> Observed:
    summary = runs["quickstart"].summary
    base = stats.pooled(summary.rounds(BASE, "latency_p50"), summary.rounds(AA, "latency_p50"))

    def added(plane: str) -> dict[int, float]:
        mine = summary.rounds(plane, "latency_p50")
        return {n: mine[n] - base[n] for n in mine.keys() & base.keys()}

    bands = (("ambient-l4", "sidecar", 0.12, 0.75), ("ambient", "sidecar", 0.55, 0.95))
    return _bands(added, bands, "added p50")


def _detour(runs: Runs) -> Observed:
    sweep = runs["placement"].sweep
    pairs = [pair for pair in axistable.bases(sweep) if pair[0].endswith("node-c")]
    found = axis.break_even(sweep, *pairs[0]) if pairs else None
    if found is None:
        return _lacking("a waypoint in a third place at every distance")
    line = found.difference
    told = (
        f"a waypoint in a third place − {pairs[0][1]}, p50: {spanned(line.intercept, sign=True)} ms at no distance, "
        f"{spanned(line.slope, sign=True)} ms for each ms of RTT; break-even {axistable.told(found)}"
    )
    result = Result.UNDECIDED
    if line.intercept.rounds < stats.MIN_ROUNDS_TO_CLAIM:
        told += f" ({line.intercept.rounds} rounds; {stats.MIN_ROUNDS_TO_CLAIM} decide)"
    elif found.pays_near and found.grows:
        result = Result.CAME_OUT
    elif found.always_more:
        result = Result.DID_NOT
    return Observed(result=result, told=told)


def _memory(runs: Runs) -> Observed:
    sweep = runs["footprint"].sweep
    fits = {p: axis.slope(sweep, p, "memory_pss", sweep.lines[0]) for p in ("sidecar", "ambient-l4")}
    one, other = fits["sidecar"], fits["ambient-l4"]
    if one is None or other is None:
        return _lacking("memory over workloads of sidecar and ambient-l4")
    told = f"PSS for each workload a node: sidecar {spanned(one.slope)} MiB, ambient-l4 {spanned(other.slope)} MiB"
    least = one.slope.low / other.slope.high if other.slope.high > 0 else math.inf
    most = one.slope.high / other.slope.low if other.slope.low > 0 else math.inf
    told += f"; at least {digits(least)} : 1" if math.isfinite(least) else ""
    return Observed(
        result=within(Interval(low=least, estimate=least, high=most, rounds=one.slope.rounds), 5.0, math.inf), told=told
    )


def _neighbour(runs: Runs) -> Observed:
    sweep = runs["neighbour"].sweep
    noisy = [place.cell for place in sweep.places if place.beside]
    found = {p: axis.ratio(sweep, p, "latency_p99", noisy[1], noisy[0]) for p in ("ambient", "sidecar", "node-l7")}
    excess = axis.ratio(sweep, "ambient", "latency_p99", noisy[1], noisy[0], to="sidecar")
    if excess is None:
        return _lacking("ambient and sidecar beside a neighbour here and elsewhere")
    told = ", ".join(f"{plane} × {spanned(one)}" for plane, one in found.items() if one is not None)
    result = within(excess, 1.0, math.inf)
    return Observed(
        result=result, told=f"p99 {noisy[1]} to {noisy[0]}: {told}; ambient's to sidecar's × {spanned(excess)}"
    )


def _identities(runs: Runs) -> Observed:
    data = runs["blast_radius"]
    on: dict[str, set[str]] = {}
    for workload in data.info["plan"]["topology"]["workloads"]:
        on.setdefault(workload["node"], set()).add(f"{workload['namespace']}/{workload['service_account']}")
    told, right = [], []
    for score in matrix.scores(data.findings):
        keys = score.counts["keys"]
        wanted = {"app": 0, "sidecar": 1, "waypoint": 1}.get(score.role)
        if score.role == "ztunnel":
            wanted = len(on[score.component.partition(".")[2]])
        if wanted is not None and score.plane != BASE:
            right.append(keys == wanted)
            told.append(f"{score.label}: {keys} of {wanted}")
    return Observed(result=Result.CAME_OUT if right and all(right) else Result.DID_NOT, told="keys: " + "; ".join(told))


def _renewed(runs: Runs) -> Observed:
    """Who opens connections while a proxy is renewed, and who holds one."""
    data = runs["disruption"]
    found = seen(data.measurements)
    cell = next((c["name"] for c in data.info["plan"]["experiment"]["cells"] if c["name"].startswith("upgrade")), "")
    if not found.count("ambient", cell) or not found.count("sidecar", cell):
        return _lacking("an upgrade under ambient and sidecar")
    told = [f"{plane}: {_told_of(found, plane, cell)}" for plane in ("ambient", "sidecar")]
    short, held, broken = _counts(found, "ambient", cell)
    result = Result.CAME_OUT if not short and held == broken else Result.DID_NOT
    return Observed(result=result, told=f"{cell}, over {found.count('ambient', cell)} rounds: {'; '.join(told)}")


def _counts(found: Seen, plane: str, cell: str) -> tuple[float, float, float]:
    """Short requests failed; TCP connections held to what was renewed, and broken."""
    streams = found.streams(plane, cell, meant_to_fail=False)
    held = [s for s in streams if found.get(plane, cell, s, "connections_held") and found.behind(plane, cell, s)]
    short = [s for s in streams if not found.get(plane, cell, s, "connections_held")]
    return (
        found.total(plane, cell, short, "failed"), found.total(plane, cell, held, "connections_held"),
        found.total(plane, cell, held, "connections_broken"),
    )  # fmt: skip


def _told_of(found: Seen, plane: str, cell: str) -> str:
    short, held, broken = _counts(found, plane, cell)
    return f"{short:.0f} short requests failed, {broken:.0f} of {held:.0f} held connections broke"


def _connections(runs: Runs) -> Observed:
    sweep = runs["churn"].sweep
    cells = [place.cell for place in sweep.places]
    one, kept = cells[0], cells[-1]

    def each(plane: str) -> dict[int, float]:
        many, few = (sweep.rounds(plane, cell, "cpu_per_1000_requests") for cell in (one, kept))
        return {n: many[n] - few[n] for n in many.keys() & few.keys()}

    costs = {plane: list(each(plane).values()) for plane in ("sidecar", "ambient-l4")}
    found = quotient(each("sidecar"), each("ambient-l4"))
    if found is None:
        return _lacking("CPU of sidecar and ambient-l4 with a connection a request and kept alive")
    told = ", ".join(f"{plane} {spanned(stats.block_interval(values))}" for plane, values in costs.items())
    told = f"CPU ms of the proxies for 1,000 connections beyond those of the requests: {told}; {spanned(found)} : 1"
    return Observed(result=within(found, 5.0, math.inf), told=told)


def _arrival(runs: Runs) -> Observed:
    """Came out where what a plane adds under one pattern and under another are intervals apart."""
    sweep = runs["arrival"].sweep
    told, apart = [], False
    for plane in ("sidecar", "ambient-l4", "ambient"):
        effects = {}
        for place in sweep.places:
            base, twin = (sweep.rounds(p, place.cell, "latency_p50") for p in (BASE, AA))
            if found := stats.effect(sweep.rounds(plane, place.cell, "latency_p50"), base, twin):
                effects[place.cell] = found.ratio
        if len(effects) < 2:
            return _lacking(f"{plane} under two patterns of arrival")
        apart |= max(e.low for e in effects.values()) > min(e.high for e in effects.values())
        told.append(f"{plane}: " + ", ".join(f"{cell} × {spanned(e)}" for cell, e in effects.items()))
    result = Result.CAME_OUT if apart else Result.UNDECIDED
    return Observed(result=result, told=f"p50 to that of no mesh, by pattern: {'; '.join(told)}")


def pairs(runs: Runs) -> tuple[int, int]:
    """(A/A intervals that hold no difference, all of them): p50, p90 and p99 of every cell of every run that has a pair
    and the rounds that a claim takes."""
    held = total = 0
    for data in runs.values():
        for summary in data.sweep.summaries.values() if data.sweep.places else (data.summary,):
            for metric in LATENCIES:
                first, second = summary.rounds(BASE, metric), summary.rounds(AA, metric)
                found = stats.effect(second, first, second, against=first)
                if found is not None and found.aa is not None and found.aa.rounds >= stats.MIN_ROUNDS_TO_CLAIM:
                    held += found.aa.holds(1.0)
                    total += 1
    return held, total


def _null(runs: Runs) -> Observed:
    held, total = pairs(runs)
    if not total:
        return _lacking("an A/A pair over six rounds")
    share = stats.wilson_interval(held, total)
    told = f"{held} of {total} A/A intervals hold 1.00: {share.estimate:.0%} [{share.low:.0%}, {share.high:.0%}]"
    result = Result.CAME_OUT if share.high >= 0.95 else Result.DID_NOT
    return Observed(result=result, told=f"{told}, 95% promised")


SHAPES = (
    Shape(text="CPU of an edge: none < L4 < waypoint ≤ about a pair of sidecars", experiments=("quickstart",),
          look=_cpu),
    Shape(text="added p50: L4 far below sidecars, a waypoint beside the call somewhat", experiments=("quickstart",),
          look=_added),
    Shape(text="a detour by a waypoint pays near and not far", experiments=("placement",), look=_detour),
    Shape(text="memory grows by workload with sidecars, by node with ztunnels: more than 5 : 1",
          experiments=("footprint",), look=_memory),
    Shape(text="a noisy neighbour on the node is felt more in ambient than with sidecars", experiments=("neighbour",),
          look=_neighbour),
    Shape(text="keys in a component: none in an app, 1 in a sidecar or waypoint, all of its node's in a ztunnel",
          experiments=("blast_radius",), look=_identities),
    Shape(text="a renewed ztunnel fails no new connection and resets all that outlive its drain",
          experiments=("disruption",), look=_renewed),
    Shape(text="a new connection costs sidecars 5 times the CPU that it costs ztunnels, or more",
          experiments=("churn",), look=_connections),
    Shape(text="how load arrives changes what a mesh adds", experiments=("arrival",), look=_arrival),
    Shape(text="two of the same do not differ: A/A intervals hold 1.00", experiments=(), look=_null),
)  # fmt: skip
