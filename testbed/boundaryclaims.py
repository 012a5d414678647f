"""Judges of what is said about security: by attempts that were made from inside components (`attack`). Pure.

A claim about planes is weighed as these were deployed here: user ids, mounts and namespaces apart, keys handed out and
never asked for. Where Istio's deployment is otherwise the verdict says what it rests on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from testbed import claims
from testbed.attack import matrix
from testbed.attack.matrix import Score
from testbed.claimlist import Claim
from testbed.claims import Judge, Judged, Verdict
from testbed.model.experiment import Finding, Result
from testbed.table import Summary

AMBIENT = ("ambient", "ambient-l4")
"""The first that was tried is judged."""
KEY_MATERIAL = ("keys-others", "keys-uncovered", "memory-others", "environment", "sockets-others", "admin-keys",
                "certificate")  # fmt: skip
TCP_WAYS = ("become", "mark", "transparent", "raw", "ipv6", "proxy-port", "spoof", "leave-after-quit")
OTHER_PROTOCOLS = ("udp", "icmp")
MEANT, VERDICTS = "boundary.meant-", "boundary.verdicts-"
"""Beginnings of the findings about all pairs (`boundarypairs`), before the name of a set of policies."""
Rows = Mapping[str, Finding]


def rows(findings: Sequence[Finding], plane: str, role: str) -> Rows:
    """What was tried in components of a role under a plane: attempt -> finding."""
    tried = [f for f in findings if f.id.startswith(matrix.PREFIX) and (f.plane, f.segment) == (plane, role)]
    return {matrix.name(f): f for f in tried}


def of(found: Rows, *groups: str) -> list[Finding]:
    return [f for name, f in found.items() if name.partition("/")[0] in groups]


def got(findings: Sequence[Finding]) -> list[Finding]:
    return [f for f in findings if f.value != matrix.REFUSED]


def ambient_of(findings: Sequence[Finding]) -> str:
    planes = {f.plane for f in findings if f.id.startswith(matrix.PREFIX)}
    return next((plane for plane in AMBIENT if plane in planes), "")


def _missing(claim: Claim, *needed: Sequence[object]) -> Judged | None:
    if all(needed):
        return None
    told = "nobody was attacked from inside under all the planes that it takes; run blast_radius"
    return Judged(claim=claim, verdict=Verdict.NO_EVIDENCE, measured=told)


def _unsure(claim: Claim, used: Sequence[Finding], plane: str) -> Judged | None:
    """Where an attempt has no evidence, neither has the claim."""
    blind = [f for f in used if f.result is Result.NO_EVIDENCE]
    if not blind:
        return None
    told = f"{len(blind)} of {len(used)} attempts without evidence, first: {blind[0].statement}"
    return Judged(claim=claim, verdict=Verdict.UNDECIDED, measured=told, plane=plane)


def _identities(claim: Claim, _summary: Summary, findings: Sequence[Finding]) -> Judged:
    """Keys that were opened, and identities in which calls were answered: several at a ztunnel, one at a sidecar."""
    plane = ambient_of(findings)
    ours, theirs = rows(findings, plane, "ztunnel"), rows(findings, "sidecar", "sidecar")
    used = of(ours, "key", "reach", "keys-others") + of(theirs, "key", "reach", "keys-others")
    if lack := _missing(claim, ours, theirs) or _unsure(claim, used, plane):
        return lack
    node, one = _score(findings, plane, "ztunnel"), _score(findings, "sidecar", "sidecar")
    others = got(of(ours, "keys-others", "keys-uncovered")) + got(of(theirs, "keys-others", "keys-uncovered"))
    usable = node.counts["identities"] == node.counts["keys"] and one.counts["identities"] == one.counts["keys"]
    right = node.counts["keys"] > 1 and one.counts["keys"] == 1 and usable and not others
    told = (
        f"{node.component}: {node.counts['keys']} keys, calls answered as {node.counts['identities']}, "
        f"{node.counts['pairs']} pairs; {one.component}: {one.counts['keys']}, {one.counts['identities']}, "
        f"{one.counts['pairs']}; keys of others: {len(others)}"
    )
    return Judged(claim=claim, verdict=Verdict.CONFIRMED if right else Verdict.REFUTED, measured=told, plane=plane)


def _app_keys(claim: Claim, _summary: Summary, findings: Sequence[Finding]) -> Judged:
    plane = ambient_of(findings)
    beside, ambient = rows(findings, "sidecar", "app"), rows(findings, plane, "app")
    used, other = of(beside, *KEY_MATERIAL), of(ambient, *KEY_MATERIAL)
    if lack := _missing(claim, used, other) or _unsure(claim, [*used, *other], "sidecar"):
        return lack
    reached = got(used)
    admin = ", ".join(matrix.name(f) for f in got(of(beside, "admin-own", "quit")))
    told = (
        f"beside a sidecar {len(reached)} of {len(used)} ways led to key material, in {plane} {len(got(other))} of "
        f"{len(other)}, user ids and mounts being apart in both and no token there to ask a CA with; of the sidecar "
        f"the app got: {admin or 'nothing'}"
    )
    right = bool(reached) and not got(other)
    return Judged(claim=claim, verdict=Verdict.CONFIRMED if right else Verdict.REFUTED, measured=told, plane="sidecar")


WEIGHED = ("keys", "identities", "past policy", "L7 rules", "read", "lost")


def _weaker(claim: Claim, _summary: Summary, findings: Sequence[Finding]) -> Judged:
    """The worst component of each plane, count by count, and what its app can do to its proxy. Confirmed where some is
    worse and none better."""
    plane = ambient_of(findings)
    ours, theirs = _worst(findings, plane), _worst(findings, "sidecar")
    if lack := _missing(claim, ours, theirs):
        return lack
    ours["proxy ended or dumped by its app"] = len(got(of(rows(findings, plane, "app"), "admin-own", "quit")))
    theirs["proxy ended or dumped by its app"] = len(got(of(rows(findings, "sidecar", "app"), "admin-own", "quit")))
    if (past := let_past(findings, plane)) is not None and (beside := let_past(findings, "sidecar")) is not None:
        ours["calls let past policy"], theirs["calls let past policy"] = past, beside
    worse = {name: (theirs[name], ours[name]) for name in ours if ours[name] > theirs[name]}
    better = {name: (theirs[name], ours[name]) for name in ours if ours[name] < theirs[name]}
    told = (
        f"worst component, sidecar then {plane}: weaker in {_listed(worse)}; stronger in {_listed(better)}; "
        f"the rest is equal"
    )
    verdict = Verdict.REFUTED if not worse else Verdict.UNDECIDED if better else Verdict.CONFIRMED
    return Judged(claim=claim, verdict=verdict, measured=told, plane=plane)


def let_past(findings: Sequence[Finding], plane: str) -> int | None:
    """Calls of all pairs that passed although the policies mean otherwise; None where nobody tried them all."""
    counts = [f.value.split()[0] for f in findings if f.plane == plane and f.id.startswith(MEANT)]
    return sum(map(int, counts)) if counts else None


def _worst(findings: Sequence[Finding], plane: str) -> dict[str, int]:
    found = [s for s in matrix.scores(findings) if s.plane == plane and s.role != "neighbour"]
    return {name: max(s.counts[name] for s in found) for name in WEIGHED} if found else {}


def _listed(counts: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} {a} to {b}" for name, (a, b) in counts.items()) or "nothing"


def _forced(claim: Claim, _summary: Summary, findings: Sequence[Finding]) -> Judged:
    found = rows(findings, "sidecar", "app")
    by_tcp, other = of(found, *TCP_WAYS), of(found, *OTHER_PROTOCOLS)
    if lack := _missing(claim, by_tcp, other) or _unsure(claim, [*by_tcp, *other], "sidecar"):
        return lack
    past = got([*by_tcp, *other])
    told = (
        f"past the proxy: {len(got(by_tcp))} of {len(by_tcp)} ways by TCP, other protocols: "
        + (", ".join(matrix.name(f) for f in got(other)) or "none")
        + f" of {len(other)}"
    )
    return Judged(
        claim=claim, verdict=Verdict.REFUTED if past else Verdict.CONFIRMED, measured=told, plane="sidecar"
    )  # fmt: skip


def _pod_ip(claim: Claim, _summary: Summary, findings: Sequence[Finding]) -> Judged:
    """With a waypoint: the same request that its policy denies, by the service's address and by the pod's."""
    found = of(rows(findings, "ambient", "app"), "secret")
    by = {f.id.rpartition("/")[2]: f for f in found}
    if lack := _missing(claim, [by.get("service")] if "service" in by else [], ["pod"] if "pod" in by else []):
        return lack
    if lack := _unsure(claim, found, "ambient"):
        return lack
    differ = by["service"].value != by["pod"].value
    told = f"what L7 policy denies: by the service's address {by['service'].value}, by the pod's {by['pod'].value}"
    pairs = [f for f in findings if f.plane == "ambient" and f.id.startswith(MEANT)]
    told += "".join(f"; of all pairs under `{f.id.removeprefix(MEANT)}` {f.value}" for f in pairs)
    return Judged(
        claim=claim, verdict=Verdict.CONFIRMED if differ else Verdict.REFUTED, measured=told, plane="ambient"
    )  # fmt: skip


def _l4_mtls(claim: Claim, summary: Summary, findings: Sequence[Finding]) -> Judged:
    """What packets say, and who lies on the wire: neither reads, alters nor repeats anything."""
    packets = claims.JUDGES[claim.id](claim, summary, findings)
    wire = of(rows(findings, "ambient-l4", "neighbour"), "read", "tamper", "replay", "spoof")
    if not wire or packets.verdict is not Verdict.CONFIRMED:
        return packets
    if broken := got(wire):
        told = f"on the wire somebody got: {', '.join(matrix.name(f) for f in broken)}"
        return Judged(claim=claim, verdict=Verdict.REFUTED, measured=told, plane="ambient-l4")
    told = f"{packets.measured}; who lies on the wire got none of {len(wire)}: read, alter, repeat, spoof"
    return Judged(claim=claim, verdict=packets.verdict, measured=told, plane="ambient-l4")


def _score(findings: Sequence[Finding], plane: str, role: str) -> Score:
    return next(s for s in matrix.scores(findings) if (s.plane, s.role) == (plane, role))


JUDGES: dict[str, Judge] = {
    "blast-radius-identities": _identities,
    "app-compromise-keys": _app_keys,
    "weaker-stance": _weaker,
    "forced-through-proxy": _forced,
    "pod-ip-bypass": _pod_ip,
    "l4-suffices-for-mtls": _l4_mtls,
}
