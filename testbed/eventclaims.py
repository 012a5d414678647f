"""Claims that are decided by what an event did: judges over the measurements of experiments with events. Pure.

What is counted is sure or not by rounds alone (`eventseen`): fewer than MIN_ROUNDS, or rounds that disagree, decide
nothing. Each judge says by which cells, and on which plane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from testbed.claimlist import Claim
from testbed.claims import Judged, Verdict
from testbed.eventseen import EVENT, Seen, seen, spread
from testbed.model.experiment import Finding, Measurement, Result

MIN_ROUNDS = 3
"""Below this nothing is decided: a run may be unlucky once."""
AMBIENT = ("ambient", "ambient-l4")
KILL, UPGRADE = "kill the server's proxy", "upgrade the server's proxy"
CRASH = "crash what reads HTTP for the server"

Judge = Callable[[Claim, Sequence[Measurement], Sequence[Finding]], Judged]


def _few(claim: Claim, found: Seen, wanted: Sequence[tuple[str, str]]) -> Judged | None:
    """A verdict where (plane, cell) lack rounds."""
    missing = [f"{cell!r} under {plane}" for plane, cell in wanted if not found.count(plane, cell)]
    if missing:
        told = f"takes valid trials of {'; '.join(missing)}; this run has none"
        return Judged(claim=claim, verdict=Verdict.NO_EVIDENCE, measured=told)
    few = min(found.count(plane, cell) for plane, cell in wanted)
    if few < MIN_ROUNDS:
        told = f"takes {MIN_ROUNDS} rounds that count, of one cell there are {few}"
        return Judged(claim=claim, verdict=Verdict.UNDECIDED, measured=told, plane=wanted[0][0])
    return None


def _with(found: Seen, planes: Sequence[str], cell: str) -> str:
    """Which of the planes was measured in the cell; the first, where none was."""
    return next((plane for plane in planes if found.count(plane, cell)), planes[0])


def _pairs(streams: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(stream.partition(",")[0] for stream in streams))


def _named(pairs: Sequence[str]) -> str:
    return "; ".join(pairs) or "nobody"


def _hit(found: Seen, plane: str, cell: str) -> tuple[list[str], list[str], list[str]]:
    """Pairs that were touched in every round, in some, in none."""
    by_pair: dict[str, list[bool | None]] = {}
    for stream in found.streams(plane, cell, meant_to_fail=False):
        by_pair.setdefault(stream.partition(",")[0], []).append(found.touched(plane, cell, stream))
    all_, some, none = [], [], []
    for pair, hits in by_pair.items():
        (all_ if True in hits else some if None in hits else none).append(pair)
    return all_, some, none


def _behind(found: Seen, plane: str, cell: str) -> list[str]:
    return _pairs([s for s in found.streams(plane, cell, meant_to_fail=False) if found.behind(plane, cell, s)])


def upgrade_restarts_pods(claim: Claim, measurements: Sequence[Measurement], _findings: Sequence[Finding]) -> Judged:
    """Ambient can: no workload restarted, fewer requests lost than by restarting them, and no more connections.

    That an upgraded sidecar takes its pod along is not found here but Kubernetes' rule, and so carried out; what it
    costs is found.
    """
    found = seen(measurements)
    ambient = _with(found, AMBIENT, UPGRADE)
    if few := _few(claim, found, [(ambient, UPGRADE), ("sidecar", UPGRADE)]):
        return few
    told, lost, broke, restarts = [], {}, {}, {}
    for plane in (ambient, "sidecar"):
        streams = found.streams(plane, UPGRADE, meant_to_fail=False)
        restarts[plane] = found.get(plane, UPGRADE, EVENT, "workloads_restarted")
        failed = [sum(v) for v in zip(*(found.get(plane, UPGRADE, s, "failed") for s in streams), strict=True)]
        lost[plane] = failed
        held = [s for s in streams if found.get(plane, UPGRADE, s, "connections_held")]
        broken = broke[plane] = found.total(plane, UPGRADE, held, "connections_broken")
        had = found.total(plane, UPGRADE, held, "connections_held")
        told.append(
            f"{plane}: workloads restarted {spread(restarts[plane])}, requests failed {spread(failed)} a round, "
            f"{broken:.0f} of {had:.0f} held connections broken"
        )
    if any(restarts[ambient]):
        verdict = Verdict.REFUTED
    elif max(lost[ambient]) < min(lost["sidecar"]) and all(restarts["sidecar"]) and broke[ambient] <= broke["sidecar"]:
        verdict = Verdict.CONFIRMED
    else:
        told.append("ambient restarts nobody, but does not cost less in both requests and connections")
        verdict = Verdict.UNDECIDED
    return Judged(claim=claim, verdict=verdict, measured="; ".join(told), plane=ambient)


def shared_l4_shared_fate(claim: Claim, measurements: Sequence[Measurement], _findings: Sequence[Finding]) -> Judged:
    """Every pair with an end on the node is hit when its agent is killed, where a sidecar's end hits its own alone."""
    found = seen(measurements)
    ambient = _with(found, AMBIENT, KILL)
    if few := _few(claim, found, [(ambient, KILL), ("sidecar", KILL)]):
        return few
    all_, some, none = _hit(found, ambient, KILL)
    behind = _behind(found, ambient, KILL)
    alone, some_alone, _ = _hit(found, "sidecar", KILL)
    gaps = [v for s in found.streams(ambient, KILL) for v in found.get(ambient, KILL, s, "longest_gap")]
    told = (
        f"ztunnel killed: hit in every round {_named(all_)}{'; in some ' + _named(some) if some else ''}; in none "
        f"{_named(none)}; "
        f"longest gap {max(gaps):.1f} s; sidecar killed: hit {_named(alone)}"
    )
    if spared := [pair for pair in behind if pair in none]:
        return Judged(
            claim=claim, verdict=Verdict.REFUTED, measured=f"{told}; spared: {_named(spared)}", plane=ambient
        )
    whole = set(behind) <= set(all_) and set(alone) < set(all_) and not some_alone
    verdict = Verdict.CONFIRMED if whole and len(behind) > 1 else Verdict.UNDECIDED
    return Judged(claim=claim, verdict=verdict, measured=told, plane=ambient)


def plugin_crash_contained(claim: Claim, measurements: Sequence[Measurement], _findings: Sequence[Finding]) -> Judged:
    """All tenants of a node's proxy are lost, of a waypoint its services alone."""
    found = seen(measurements)
    if few := _few(claim, found, [("ambient", CRASH), ("node-l7", CRASH)]):
        return few
    planes = [plane for plane in ("sidecar", "ambient", "node-l7") if found.count(plane, CRASH)]
    hit = {plane: _hit(found, plane, CRASH) for plane in planes}
    behind = {plane: _behind(found, plane, CRASH) for plane in planes}
    told = "; ".join(f"{plane}: {_named(hit[plane][0])}" for plane in planes)
    told = f"pairs lost in every round: {told}"
    unsure = any(some for _, some, _ in hit.values())
    beyond = set(hit["ambient"][0]) - set(behind["ambient"])
    spared = set(behind["node-l7"]) & set(hit["node-l7"][2])
    if beyond or spared:
        verdict = Verdict.REFUTED
    elif unsure or not hit["ambient"][0] or not set(hit["ambient"][0]) < set(hit["node-l7"][0]):
        verdict = Verdict.UNDECIDED
    else:
        verdict = Verdict.CONFIRMED
    return Judged(claim=claim, verdict=verdict, measured=told, plane="ambient")


def _short(found: Seen, plane: str, cell: str) -> list[str]:
    streams = found.streams(plane, cell, meant_to_fail=False)
    return [s for s in streams if not found.get(plane, cell, s, "connections_held")]


def _costs(found: Seen, plane: str, cell: str) -> tuple[float, float, float, float]:
    """Over all rounds: workloads restarted, short requests failed, held connections broken, of how many."""
    streams = found.streams(plane, cell, meant_to_fail=False)
    short = _short(found, plane, cell)
    held = [s for s in streams if s not in short]
    return (
        found.total(plane, cell, [EVENT], "workloads_restarted"),
        found.total(plane, cell, short, "failed"),
        found.total(plane, cell, held, "connections_broken"),
        found.total(plane, cell, held, "connections_held"),
    )


def _told(found: Seen, plane: str, cell: str) -> str:
    restarted, failed, broken, held = _costs(found, plane, cell)
    return (
        f"{plane}, {cell}, {found.count(plane, cell)} rounds: {restarted:.0f} workloads restarted, {failed:.0f} short "
        f"requests failed, {broken:.0f} of {held:.0f} open connections broken"
    )


def join_without_restart(claim: Claim, measurements: Sequence[Measurement], _findings: Sequence[Finding]) -> Judged:
    """No restart, nothing failed, nothing broke: confirmed. Connections that break are a restart's cost without one:
    then the words hold and what they promise does not."""
    found = seen(measurements)
    ambient = _with(found, ("ambient-l4", "ambient"), "joins")
    if few := _few(claim, found, [(ambient, "joins")]):
        return few
    restarted, failed, broken, _ = _costs(found, ambient, "joins")
    told = _told(found, ambient, "joins")
    if found.count("sidecar", "joins"):
        told += f"; {_told(found, 'sidecar', 'joins')}"
    joined = found.streams(ambient, "joins", meant_to_fail=True)
    refused = all(found.touched(ambient, "joins", s) for s in joined)
    if not joined or not refused:
        told += "; but no policy shows that it is in the mesh"
        return Judged(claim=claim, verdict=Verdict.UNDECIDED, measured=told, plane=ambient)
    verdict = Verdict.REFUTED if restarted else Verdict.UNDECIDED if failed or broken else Verdict.CONFIRMED
    if verdict is Verdict.UNDECIDED:
        told += "; nothing is restarted, but who was connected notices"
    return Judged(claim=claim, verdict=verdict, measured=told, plane=ambient)


TO_L4, TO_L7 = "none → L4", "L4 → waypoint"


def gradual(claim: Claim, measurements: Sequence[Measurement], _findings: Sequence[Finding]) -> Judged:
    """Both steps without a restart and without a lost short request; the second enforced."""
    found = seen(measurements)
    if few := _few(claim, found, [("ambient", TO_L4), ("ambient", TO_L7)]):
        return few
    told, restarted, failed, broken = [], 0.0, 0.0, 0.0
    for cell in (TO_L4, TO_L7):
        costs = _costs(found, "ambient", cell)
        restarted, failed, broken = restarted + costs[0], failed + costs[1], broken + costs[2]
        told.append(_told(found, "ambient", cell))
    refused = found.streams("ambient", TO_L7, meant_to_fail=True)
    enforced = bool(refused) and all(found.touched("ambient", TO_L7, s) for s in refused)
    lasts = [v for s in refused for v in found.get("ambient", TO_L7, s, "last_success")]
    told.append(
        f"L7 enforced: last call that it refuses was served {spread(lasts, '{:.2f}')} s after the step"
        if enforced
        else "L7 was not enforced in every round"
    )
    if restarted:
        verdict = Verdict.REFUTED
    elif failed or broken or not enforced:
        verdict = Verdict.UNDECIDED
    else:
        verdict = Verdict.CONFIRMED
    return Judged(claim=claim, verdict=verdict, measured="; ".join(told), plane="ambient")


MIXED = ("server: sidecar → ambient, client: sidecar", "server: sidecar → ambient, client: ambient")


def interop(claim: Claim, measurements: Sequence[Measurement], findings: Sequence[Finding]) -> Judged:
    """Served in both mixtures (a sidecar calls an ambient workload after the step, an ambient one a sidecar before it),
    and nothing broken in what packets and boundaries of the hybrid plane were asked."""
    found = seen(measurements)
    if few := _few(claim, found, [("hybrid", cell) for cell in MIXED]):
        return few
    short = [_short(found, "hybrid", cell) for cell in MIXED]
    after = sum(not any(found.get("hybrid", MIXED[0], s, "recovered")) for s in short[0])
    before = found.total("hybrid", MIXED[1], short[1], "failed_before")
    asked = [f for f in findings if f.plane == "hybrid"]
    broken = [f for f in asked if f.result is Result.BROKEN]
    proven = [f for f in asked if f.id.startswith("packets.") and f.id.endswith("/tls") and f.result is Result.HOLDS]
    told = (
        f"sidecar → ambient: {len(short[0]) - after} of {len(short[0])} streams served after the step; ambient → "
        f"sidecar: {before:.0f} requests failed before it; findings on hybrid: {len(asked)}, broken {len(broken)}, "
        f"mutual TLS proven on {len({f.segment for f in proven})} segments"
    )
    if broken or after or before:
        verdict = Verdict.REFUTED if broken or after else Verdict.UNDECIDED
    else:
        verdict = Verdict.CONFIRMED if proven else Verdict.UNDECIDED
    return Judged(claim=claim, verdict=verdict, measured=told, plane="hybrid")


JUDGES: dict[str, Judge] = {
    "upgrade-restarts-pods": upgrade_restarts_pods,
    "shared-l4-shared-fate": shared_l4_shared_fate,
    "plugin-crash-contained": plugin_crash_contained,
    "join-without-restart": join_without_restart,
    "gradual": gradual,
    "interop": interop,
}
