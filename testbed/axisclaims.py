"""Verdicts on claims that one cell cannot decide: break-even points, slopes over a sweep, a neighbour's noise. Pure.

`judge` is what the table, the report and `claims` ask for any run: claims named in `JUDGES` here are weighed over all
cells of a sweep, those of `eventclaims` over all cells of an experiment with events, the others over its first, as
those of a run without an axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from testbed import axis, axistable, claims, eventclaims, planespec, stats
from testbed.axis import Sweep
from testbed.axistable import spanned
from testbed.claimlist import CLAIMS, Claim
from testbed.claims import Judged, Verdict
from testbed.model.experiment import Finding, Measurement
from testbed.stats import Interval
from testbed.table import AA, BASE, summarise

Judge = Callable[[Claim, Sweep], Judged]
LITTLE = 1.1
"""A ratio that one may call tolerable: a tenth more."""
NINETY_PERCENT = 0.9


def judge(
    ids: Sequence[str], info: Mapping[str, Any], measurements: Sequence[Measurement], findings: Sequence[Finding]
) -> list[Judged]:
    """One verdict for each claim. Raises UsageError for one that is not in the list."""
    sweep = Sweep(info, measurements)
    cells = [place.cell for place in sweep.places]
    first = [m for m in measurements if m.cell == cells[0]] if cells else measurements
    summary = summarise(first, order=sweep.experiment["planes"])
    return [
        eventclaims.JUDGES[id_](CLAIMS[id_], measurements, findings)
        if id_ in eventclaims.JUDGES
        else JUDGES[id_](CLAIMS[id_], sweep)
        if id_ in JUDGES and sweep.axis.get("name") and decides(id_, sweep)
        else claims.judge([id_], summary, findings)[0]
        for id_ in ids
    ]


def decides(id_: str, sweep: Sweep) -> bool:
    """Whether the sweep is of the kind that the claim's judge asks for."""
    if id_ in ("hop-vs-l7", "two-l4-one-l7"):
        return bool(axistable.bases(sweep))
    return True


def _none(claim: Claim, missing: str) -> Judged:
    return Judged(claim=claim, verdict=Verdict.NO_EVIDENCE, measured=f"this run has not got {missing}")


def _enough(*found: Interval) -> bool:
    return all(one.rounds >= stats.MIN_ROUNDS_TO_CLAIM for one in found)


# -- where a waypoint stands


def _waypoint_node(plane: str) -> str:
    return planespec.split(plane)[1][axistable.WAYPOINT_NODE]


def _co_located(sweep: Sweep) -> list[tuple[str, str]]:
    """Waypoints on the node of the client or of the target's workloads."""
    node_of = {w["name"]: w["node"] for w in sweep.topology.get("workloads", ())}
    target = sweep.experiment["target"].partition(":")[0]
    served = [s for s in sweep.topology.get("services", ()) if s["name"] == target]
    ends = {node_of.get(name) for name in (sweep.experiment["client"], *(e for s in served for e in s["endpoints"]))}
    return [(plane, base) for plane, base in axistable.bases(sweep) if _waypoint_node(plane) in ends]


def _hop_vs_l7(claim: Claim, sweep: Sweep) -> Judged:
    """A detour that pays near and no more far: an intercept below nothing, a slope above, and a crossing seen."""
    near = _co_located(sweep)
    detours = [pair for pair in axistable.bases(sweep) if pair not in near]
    if not detours:
        return _none(claim, "a waypoint on neither node of the call, over an axis of distance")
    (plane, base), *_ = detours
    found = axis.break_even(sweep, plane, base)
    if found is None:
        return _none(claim, f"rounds with {plane} and {base} at every distance")
    difference = found.difference
    told = (
        f"{plane} − {base}, p50: at no distance {spanned(difference.intercept, sign=True)} ms, for each "
        f"{sweep.axis.get('unit', '')} of RTT {spanned(difference.slope, sign=True)} ms; break-even "
        f"{axistable.told(found)}"
    )
    for place, its_base in near:
        at, values = sweep.per_round(place, "latency_p50", base=its_base)
        if (beside := axis.fit(at, values)) is not None:
            told += f"; {place}: {spanned(beside.intercept, sign=True)} and {spanned(beside.slope, sign=True)}"
    if not _enough(difference.intercept):
        verdict = Verdict.UNDECIDED
    elif found.pays_near and found.grows:
        verdict = Verdict.UNDECIDED if axistable.far(found) else Verdict.CONFIRMED
    elif found.always_more or (found.pays_near and difference.slope.high <= 0):
        verdict = Verdict.REFUTED
    else:
        verdict = Verdict.UNDECIDED
    return Judged(claim=claim, verdict=verdict, measured=told, plane=plane)


def _two_l4_one_l7(claim: Claim, sweep: Sweep) -> Judged:
    """Co-located, over all distances: p50, p99 and CPU all less; refuted where some is more and none less."""
    pairs = _co_located(sweep)
    if not pairs:
        return _none(claim, "a waypoint beside the client or the server, with sidecars in the same rounds")
    told, signs, enough = [], set(), True
    for plane, base in pairs:
        for name, metric, unit in (
            ("p50", "latency_p50", "ms"),
            ("p99", "latency_p99", "ms"),
            ("CPU", "cpu_per_1000_requests", "ms/1,000"),
        ):
            _, values = sweep.per_round(plane, metric, base=base)
            if not len(values):
                return _none(claim, f"{name} of {plane} and {base} from the same rounds, in every cell")
            found = stats.block_interval(values.mean(axis=1).tolist())
            enough &= _enough(found)
            signs.add(-1 if found.high < 0 else 1 if found.low > 0 else 0)
            told.append(f"{plane} − {base}, {name} {spanned(found, sign=True)} {unit}")
    verdict = Verdict.UNDECIDED
    if enough:
        verdict = (
            Verdict.CONFIRMED
            if signs == {-1}
            else Verdict.REFUTED
            if 1 in signs and -1 not in signs
            else Verdict.UNDECIDED
        )
    return Judged(claim=claim, verdict=verdict, measured="; ".join(told), plane=pairs[0][0])


# -- what stands there while nobody calls


def _per_workload(sweep: Sweep, plane: str, metric: str, line: str) -> axis.Fit | None:
    """Over all workloads, not those of one node."""
    at, values = sweep.per_round(plane, metric, line)
    return axis.fit(at * _nodes(sweep), values)


def _nodes(sweep: Sweep) -> float:
    """How many nodes each step of the axis adds a workload to: what the cells measured says."""
    place = sweep.on_axis()[-1]
    summary = sweep.summaries[place.cell]
    counts = [n for plane in sweep.planes for n in summary.rounds(plane, "workloads", "testbed").values()]
    return max(counts, default=1.0) / place.at if place.at else 1.0


def _per_pod_vs_per_node(claim: Claim, sweep: Sweep) -> Judged:
    """One proxy more a workload against none, and memory that grows with it against memory that does not."""
    line = sweep.lines[0]
    found = {
        (plane, metric): _per_workload(sweep, plane, metric, line)
        for plane in ("sidecar", "ambient-l4")
        for metric in ("proxies", "memory_pss", "cpu_idle")
    }
    if any(found[plane, m] is None for plane in ("sidecar", "ambient-l4") for m in ("proxies", "memory_pss")):
        return _none(claim, "proxies and memory of sidecar and ambient-l4 over workloads")
    at, mine = sweep.per_round("ambient-l4", "memory_pss", line, base="sidecar")
    gap = axis.fit(at * _nodes(sweep), mine)
    assert gap is not None
    told = []
    for plane in ("sidecar", "ambient-l4"):
        proxies, memory, cpu = (found[plane, m] for m in ("proxies", "memory_pss", "cpu_idle"))
        text = f"{plane}: for each workload {spanned(proxies.slope, sign=True)} proxies, "
        text += f"{spanned(memory.slope, sign=True)} MiB"
        text += f", {spanned(cpu.slope, sign=True)} ms/s of idle CPU" if cpu is not None else ""
        told.append(text + f"; 100 workloads on {_nodes(sweep):g} nodes would take {spanned(memory.at(100))} MiB")
    counts = [found[plane, "proxies"].slope for plane in ("sidecar", "ambient-l4")]
    as_said = abs(counts[0].estimate - 1) < 1e-6 and abs(counts[1].estimate) < 1e-6
    if not _enough(gap.slope):
        verdict = Verdict.UNDECIDED
    elif not as_said or gap.slope.low > 0:
        verdict = Verdict.REFUTED
    else:
        verdict = Verdict.CONFIRMED if gap.slope.high < 0 else Verdict.UNDECIDED
    return Judged(claim=claim, verdict=verdict, measured="; ".join(told), plane="ambient-l4")


def _replicas_gain_most(claim: Claim, sweep: Sweep) -> Judged:
    """What ambient saves for each workload more: as a replica, against as a service with a waypoint of its own."""
    lines = [line for line in sweep.lines if len(sweep.on_axis(line)) >= axis.LEAST_POINTS]
    if len(lines) < 2:
        return _none(claim, "workloads that grow as services and as replicas")
    saved = {}
    for line in lines[:2]:
        at, values = sweep.per_round("ambient", "memory_pss", line, base="sidecar")
        if (found := axis.fit(at * _nodes(sweep), values)) is None:
            return _none(claim, "memory of ambient and sidecar over workloads in the same rounds")
        saved[line] = found
    alone, replicas = saved.values()
    rounds = min(len(alone.per_round), len(replicas.per_round))
    more = stats.block_interval(
        [a[1] - r[1] for a, r in zip(alone.per_round[:rounds], replicas.per_round[:rounds], strict=True)]
    )
    listed = "; ".join(f"{line}: {spanned(found.slope, sign=True)} MiB" for line, found in saved.items())
    told = f"ambient − sidecar for each workload more, {listed}; saved more as a replica {spanned(more, sign=True)} MiB"
    if not _enough(more):
        verdict = Verdict.UNDECIDED
    else:
        verdict = Verdict.CONFIRMED if more.low > 0 else Verdict.REFUTED if more.high < 0 else Verdict.UNDECIDED
    return Judged(claim=claim, verdict=verdict, measured=told, plane="ambient")


def _ninety_percent(claim: Claim, sweep: Sweep) -> Judged:
    """Of memory alone: refuted where even endless workloads would not save it, else open, for CPU is not in it."""
    told, reachable, enough = [], False, True
    for plane in ("ambient-l4", "ambient"):
        for line in [line for line in sweep.lines if len(sweep.on_axis(line)) >= axis.LEAST_POINTS]:
            _, mine = sweep.per_round(plane, "memory_pss", line)
            at, theirs = sweep.per_round("sidecar", "memory_pss", line)
            ours, base = axis.fit(at, mine), axis.fit(at, theirs)
            if ours is None or base is None:
                return _none(claim, f"memory of sidecar and {plane} over workloads")
            seen = np.median(mine[:, -1]) / np.median(theirs[:, -1]) - 1
            pairs = zip(ours.per_round, base.per_round, strict=False)
            limit = stats.block_interval([o[1] / b[1] - 1 for o, b in pairs if b[1] > 0] or [0.0])
            enough &= _enough(limit)
            reachable |= limit.low <= -NINETY_PERCENT
            shares = f"{seen:+.0%} at {at[-1]:g} {sweep.axis['name']}, with ever more of them {limit.estimate:+.0%} "
            shares += f"[{limit.low:+.0%}, {limit.high:+.0%}]"
            told.append(f"{plane}, {line}: {shares.replace('-', '−')}")
    verdict = Verdict.REFUTED if enough and not reachable else Verdict.UNDECIDED
    measured = f"memory beside sidecars: {'; '.join(told)}. CPU under load is not in this run"
    return Judged(claim=claim, verdict=verdict, measured=measured, plane="ambient")


def _fewer_config_streams(claim: Claim, sweep: Sweep) -> Judged:
    """Of a start and of workloads and services that are added: refuted where without any waypoint proxies, each a
    stream, or what they are given grow faster than with sidecars; else open, for a change of policy is not in it."""
    told, more, enough = [], False, True
    for plane in ("ambient-l4", "ambient"):
        for line in [line for line in sweep.lines if len(sweep.on_axis(line)) >= axis.LEAST_POINTS]:
            grown = {}
            for metric in ("proxies", "config"):
                at, values = sweep.per_round(plane, metric, line, base="sidecar")
                if (found := axis.fit(at * _nodes(sweep), values)) is None:
                    return _none(claim, f"{metric} of {plane} and sidecar over workloads in the same rounds")
                grown[metric] = found.slope
                enough &= _enough(found.slope)
                more |= plane == "ambient-l4" and found.slope.low > 0
            counts = f"{spanned(grown['proxies'], sign=True)} proxies, {spanned(grown['config'], sign=True)} KiB"
            told.append(f"{plane}, {line}: {counts}")
    verdict = Verdict.REFUTED if enough and more else Verdict.UNDECIDED
    measured = f"beside sidecars, for each workload more: {'; '.join(told)}. A change of policy is not in this run"
    return Judged(claim=claim, verdict=verdict, measured=measured, plane="ambient-l4", beside="sidecar")


# -- noisy neighbours


def _shared_cells(sweep: Sweep) -> tuple[str, str, str] | None:
    """(nothing shared, the nodes shared, the waypoint shared), as the experiment orders its cells."""
    noisy = [place.cell for place in sweep.places if place.beside]
    return (noisy[0], noisy[1], noisy[2]) if len(noisy) >= 3 else None


def _noisy_l7_shared(claim: Claim, sweep: Sweep) -> Judged:
    """Sharing the node's L7 proxy makes the victim later than sharing nodes with sidecars does."""
    cells = _shared_cells(sweep)
    found = {} if cells is None else {
        plane: axis.ratio(sweep, plane, "latency_p99", cells[1], cells[0]) for plane in ("sidecar", "node-l7")
    }  # fmt: skip
    excess = cells and axis.ratio(sweep, "node-l7", "latency_p99", cells[1], cells[0], to="sidecar")
    if cells is None or not excess or None in found.values():
        return _none(claim, "node-l7 and sidecar beside a neighbour on the same nodes and on others")
    told = f"p99 {cells[1]} to {cells[0]}: " + ", ".join(f"{p} × {spanned(r)}" for p, r in found.items())
    told += f"; node-l7's to sidecar's × {spanned(excess)}"
    waypoint = axis.ratio(sweep, "ambient", "latency_p99", cells[2], cells[0])
    if waypoint is not None:
        told += f"; ambient {cells[2]} × {spanned(waypoint)}"
    if not _enough(excess):
        verdict = Verdict.UNDECIDED
    else:
        refuted = excess.high < LITTLE
        verdict = Verdict.CONFIRMED if excess.low > 1 else Verdict.REFUTED if refuted else Verdict.UNDECIDED
    return Judged(claim=claim, verdict=verdict, measured=told, plane="node-l7")


def _noisy_l4_is_tolerable(claim: Claim, sweep: Sweep) -> Judged:
    """Tolerable: at most a tenth later than beside a neighbour elsewhere, or less than behind a shared L7 proxy."""
    cells = _shared_cells(sweep)
    shared = cells and axis.ratio(sweep, "ambient-l4", "latency_p99", cells[1], cells[0])
    to_l7 = cells and axis.ratio(sweep, "ambient-l4", "latency_p99", cells[1], cells[0], to="node-l7")
    if cells is None or not shared or not to_l7:
        return _none(claim, "ambient-l4 and node-l7 beside a neighbour on the same nodes and on others")
    told = f"ambient-l4, p99 {cells[1]} to {cells[0]} × {spanned(shared)}; to that of node-l7 × {spanned(to_l7)}"
    if not _enough(shared, to_l7):
        verdict = Verdict.UNDECIDED
    elif shared.high < LITTLE or to_l7.high < 1:
        verdict = Verdict.CONFIRMED
    else:
        verdict = Verdict.REFUTED if shared.low > LITTLE and to_l7.low >= 1 else Verdict.UNDECIDED
    return Judged(claim=claim, verdict=verdict, measured=told, plane="ambient-l4")


# -- how load arrives


def _pattern(sweep: Sweep, arrival: str) -> str | None:
    """Of the cells in an open loop, the one in which load arrives so."""
    for cell in sweep.experiment.get("cells", ()):
        if cell["load"]["kind"] == "open" and cell["load"]["arrival"] == arrival:
            return cell["name"]
    return None


def _arrival_pattern(claim: Claim, sweep: Sweep) -> Judged:
    """In the same rounds: what bursts (the pattern of the source's figures) do to sidecars' latency (the mesh of its
    day), over what sidecars do to the baseline's at constant gaps. As much: at least as much, less a tenth.

    Both p50 and p99 must say it, as both must say that it is less; the other patterns and planes are told beside.
    """
    constant, bursts = _pattern(sweep, "uniform"), _pattern(sweep, "synchronised")
    if constant is None or bursts is None:
        return _none(claim, "the same load at constant gaps and in bursts")
    told, verdicts, enough = [], set(), True
    for name, metric in (("p50", "latency_p50"), ("p99", "latency_p99")):
        pair = [sweep.rounds(twin, constant, metric) for twin in (BASE, AA)]
        mesh = stats.log_ratios(sweep.rounds("sidecar", constant, metric), stats.pooled(*pair))
        pattern = stats.log_ratios(*(sweep.rounds("sidecar", cell, metric) for cell in (bursts, constant)))
        shared = sorted(mesh.keys() & pattern.keys())
        if not shared:
            return _none(claim, f"{name} of sidecars in bursts and at constant gaps, and of {BASE}, in the same rounds")
        more = stats.block_interval([pattern[n] - mesh[n] for n in shared])
        enough &= _enough(more)
        verdicts.add(1 if more.low > -math.log(LITTLE) else -1 if more.high < 0 else 0)
        does = [spanned(stats.exponential(stats.block_interval([one[n] for n in shared]))) for one in (pattern, mesh)]
        told.append(
            f"{name}: bursts to constant gaps × {does[0]}, sidecars to {BASE} × {does[1]}, the one over the other "
            f"× {spanned(stats.exponential(more))}"
        )
    for plane in axis.without_twin(sweep.planes):
        others = [place.cell for place in sweep.places if place.cell != constant]
        seen = [(cell, axis.ratio(sweep, plane, "latency_p50", cell, constant)) for cell in others]
        ratios = ", ".join(f"{cell} × {spanned(found)}" for cell, found in seen if found)
        told.append(f"{plane}, p50 to {constant}: {ratios}")
    verdict = Verdict.UNDECIDED
    if enough and len(verdicts) == 1:
        verdict = {1: Verdict.CONFIRMED, -1: Verdict.REFUTED}.get(verdicts.pop(), Verdict.UNDECIDED)
    return Judged(claim=claim, verdict=verdict, measured="; ".join(told), plane="sidecar", beside=BASE)


JUDGES: dict[str, Judge] = {
    "hop-vs-l7": _hop_vs_l7,
    "two-l4-one-l7": _two_l4_one_l7,
    "per-pod-vs-per-node": _per_pod_vs_per_node,
    "replicas-gain-most": _replicas_gain_most,
    "ninety-percent": _ninety_percent,
    "fewer-config-streams": _fewer_config_streams,
    "noisy-l7-shared": _noisy_l7_shared,
    "noisy-l4-is-tolerable": _noisy_l4_is_tolerable,
    "arrival-pattern": _arrival_pattern,
}
