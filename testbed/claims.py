"""Claims weighed against what runs measured and found: confirmed, refuted, undecided, or no evidence. Pure.

A judge looks at the findings and figures of one run. Where a claim has none yet, or the run lacks what decides it, the
verdict is `no evidence`: that a run exists proves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module

from testbed import stats, table
from testbed.claimlist import CLAIMS, Claim, said_by
from testbed.errors import UsageError
from testbed.model.experiment import Finding, Result


class Verdict(StrEnum):
    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    UNDECIDED = "undecided"
    NO_EVIDENCE = "no evidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    claim: Claim
    verdict: Verdict
    measured: str
    """What was seen, or what is missing."""
    plane: str = ""
    """On which plane; its implementation stands in run.json."""
    beside: str = ""
    """The plane it was compared with."""


Judge = Callable[[Claim, table.Summary, Sequence[Finding]], Judged]


def judge(ids: Sequence[str], summary: table.Summary, findings: Sequence[Finding]) -> list[Judged]:
    """One verdict for each claim that an experiment names. Raises UsageError for one that is not in the list."""
    judged = []
    for id_ in ids:
        if id_ not in CLAIMS:
            raise UsageError(f"no claim is called {id_!r}; known: {', '.join(CLAIMS)}")
        judged.append(_judge_of(id_)(CLAIMS[id_], summary, findings))
    return judged


JUDGE_MODULES = ("testbed.boundaryclaims",)
"""Further judges, each module with `JUDGES` of its own, which come before those here; imported when first asked."""


def _judge_of(id_: str) -> Judge:
    further = [found for module in JUDGE_MODULES if (found := import_module(module).JUDGES.get(id_))]
    return further[0] if further else JUDGES.get(id_, _not_yet)


TITLE = "Claims that this experiment speaks to"


def with_claims(
    built: table.Table,
    ids: Sequence[str],
    summary: table.Summary,
    findings: Sequence[Finding],
    implementations: Mapping[str, Mapping[str, str]],
    judged: Sequence[Judged] | None = None,
) -> table.Table:
    """The table with one more block, a row a claim. `judged` is by other judges (`axisclaims`)."""
    if not ids:
        return built
    rows = []
    judged = judge([id_ for id_ in ids if id_ in CLAIMS], summary, findings) if judged is None else judged
    who = said_by(source for one in judged for source in one.claim.sources)
    tones = {Verdict.REFUTED: "bad", Verdict.NO_EVIDENCE: "weak", Verdict.UNDECIDED: "weak"}
    for one in judged:
        on = made_of(one, implementations) or "–"
        texts = (one.claim.id, f"{one.claim.text} ({', '.join(one.claim.sources)})", one.measured, on)
        cells = [table.Cell(lines=(text,)) for text in texts]
        cells[1] = table.Cell(lines=(texts[1],), note=len(built.notes) + 1)
        cells.append(table.Cell(lines=(one.verdict.value,), tone=tones.get(one.verdict, "")))
        rows.append(tuple(cells))
    head = ("claim", "what was said (by whom)", "what was seen", "on", "verdict")
    block = table.Block(title=TITLE, head=head, rows=tuple(rows), numeric=False)
    return table.Table(blocks=(*built.blocks, block), notes=(*built.notes, *filter(None, [who])))


def made_of(one: Judged, implementations: Mapping[str, Mapping[str, str]]) -> str:
    """The plane and what ran under that name; `implementations` is `planes` of run.json."""
    made = implementations.get(one.plane, {})
    planes = f"{one.plane} beside {one.beside}:" if one.beside else one.plane
    return " ".join(filter(None, (planes, made.get("implementation", ""), made.get("version", ""))))


def _not_yet(claim: Claim, _summary: table.Summary, _findings: Sequence[Finding]) -> Judged:
    measured = f"nothing here decides it; it takes: {claim.decided_by}"
    return Judged(claim=claim, verdict=Verdict.NO_EVIDENCE, measured=measured)


def _from_packets(
    plane: str, checks: Sequence[str], seen: Callable[[Sequence[Finding]], str], best: Verdict = Verdict.CONFIRMED
) -> Judge:
    """`best` where every named check holds on every segment that was judged; each must be there."""

    def weigh(claim: Claim, _summary: table.Summary, findings: Sequence[Finding]) -> Judged:
        asked = [f for f in findings if f.plane == plane and f.id.startswith("packets.")]
        asked = [f for f in asked if f.id.rpartition("/")[2] in checks]
        missing = set(checks) - {f.id.rpartition("/")[2] for f in asked}
        broken = [f for f in asked if f.result is Result.BROKEN]
        open_ = [f for f in asked if f.result is Result.NO_EVIDENCE]
        if broken:
            first = broken[0]
            told = f"{len(broken)} of {len(asked)} checks broken, first: {first.statement} ({first.segment})"
            return Judged(claim=claim, verdict=Verdict.REFUTED, measured=told, plane=plane)
        if missing:
            told = f"under {plane} packets do not tell: {', '.join(sorted(missing))}"
            return Judged(claim=claim, verdict=Verdict.NO_EVIDENCE, measured=told)
        if open_:
            told = f"{len(open_)} of {len(asked)} checks without evidence, first: {open_[0].evidence}"
            return Judged(claim=claim, verdict=Verdict.UNDECIDED, measured=told, plane=plane)
        return Judged(claim=claim, verdict=best, measured=seen(asked), plane=plane)

    return weigh


def _segments(findings: Sequence[Finding]) -> int:
    return len({f.segment for f in findings})


def _pairs(findings: Sequence[Finding]) -> str:
    """Who called whom, out of ids as `packets.ambient-l4/client>server/wire/tls`."""
    pairs = [m[1].replace(">", " → ") for f in findings if (m := re.search(r"/([^/>]+>[^/]+)/", f.id))]
    return ", ".join(dict.fromkeys(pairs))


def _frames(claim: Claim, summary: table.Summary, findings: Sequence[Finding]) -> Judged:
    """Of the waypoint's own leg where a plane had one; between ztunnels it is half of what was said."""

    def told(legs: str) -> Callable[[Sequence[Finding]], str]:
        return lambda found: (
            f"on all {_segments(found)} wire segments, decrypted{legs}: HTTP/2, CONNECT with authority and baggage"
        )

    to_waypoint = [f for f in findings if f.plane == "ambient" and "waypoint" in f.id]
    if to_waypoint:
        judged = _from_packets("ambient", ("alpn", "hbone"), told(", to the waypoint and from it"))
        return judged(claim, summary, [f for f in findings if f.plane == "ambient"])
    half = told("; but between ztunnels: the waypoint's half takes a plane that has one")
    return _from_packets("ambient-l4", ("alpn", "hbone"), half, best=Verdict.UNDECIDED)(claim, summary, findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One metric, ambient with a waypoint beside sidecar, paired by round."""

    name: str
    unit: str
    added: float
    """Difference in `unit`: trimmed mean over rounds."""
    effect: stats.Effect
    """The ratio, and what the A/A pair of the same rounds shows by chance."""

    @property
    def sign(self) -> int:
        """-1: less, 1: more, each as far as one may claim it; 0: nothing may be claimed (`effect.why_not`)."""
        return 0 if not self.effect.claimed else 1 if self.effect.ratio.estimate > 1 else -1

    @property
    def text(self) -> str:
        return f"{self.name} {table.signed(self.added)} {self.unit}, {self.effect.text}"


_METRICS = (
    ("p50", "latency_p50", "ms", "client"),
    ("p90", "latency_p90", "ms", "client"),
    ("p99", "latency_p99", "ms", "client"),
    ("CPU", "cpu_per_1000_requests", "ms/1,000", None),
    ("memory", "memory_pss", "MiB", None),
)
APPLICATION = "app"
"""The A/A pair has no proxies; how well CPU and memory are told apart is seen from its application's."""


def compare(summary: table.Summary, names: Sequence[str]) -> list[Compared]:
    """Of the planes `ambient` and `sidecar`; what was not measured under both is not in it."""
    found = []
    for name, metric, unit, component in _METRICS:
        if name not in names:
            continue
        mine, theirs = (summary.rounds(plane, metric, component) for plane in ("ambient", "sidecar"))
        pair = (summary.rounds(plane, metric, component or APPLICATION) for plane in (table.BASE, table.AA))
        effect = stats.effect(mine, *pair, against=theirs)
        if effect is not None:
            added = stats.trimmed_mean(stats.paired_differences(mine, theirs))
            found.append(Compared(name=name, unit=unit, added=added, effect=effect))
    return found


def _unmeasured(claim: Claim, wanted: Sequence[str], got: Sequence[Compared]) -> Judged | None:
    missing = [name for name in wanted if name not in {c.name for c in got}]
    if missing:
        told = f"takes {', '.join(missing)} of ambient and sidecar from the same rounds; this run has not got them"
        return Judged(claim=claim, verdict=Verdict.NO_EVIDENCE, measured=told)
    return None


def _listed(compared: Sequence[Compared]) -> str:
    """Each with why nothing may be claimed of it; where that is the same of all, once."""
    whys = {c.effect.why_not for c in compared}
    if len(whys) == 1:
        return "; ".join(c.text for c in compared) + "".join(f" ({why})" for why in whys if why)
    return "; ".join(f"{c.text} ({c.effect.why_not})" if c.effect.why_not else c.text for c in compared)


def _two_l4_one_l7(claim: Claim, summary: table.Summary, _findings: Sequence[Finding]) -> Judged:
    """Cost less, in latency and in CPU: all of it must be less; refuted where some is more and none less."""
    names = ("p50", "p99", "CPU")
    compared = compare(summary, names)
    if (judged := _unmeasured(claim, names, compared)) is not None:
        return judged
    signs = {c.sign for c in compared}
    verdict = (
        Verdict.CONFIRMED if signs == {-1} else Verdict.REFUTED if 1 in signs and -1 not in signs else Verdict.UNDECIDED
    )
    measured = f"ambient with a waypoint beside sidecar, co-located: {_listed(compared)}"
    return Judged(claim=claim, verdict=verdict, measured=measured, plane="ambient", beside="sidecar")


NEARLY_EVERY = 0.8


def _ambient_slower(claim: Claim, summary: table.Summary, _findings: Sequence[Finding]) -> Judged:
    """Worse by nearly every metric: by four of five. Refuted once more than one of five is not worse for certain."""
    names = tuple(name for name, *_ in _METRICS)
    compared = compare(summary, names)
    if (judged := _unmeasured(claim, names, compared)) is not None:
        return judged
    worse = sum(c.sign == 1 for c in compared)
    better = sum(c.sign == -1 for c in compared)
    needed = NEARLY_EVERY * len(compared)
    verdict = (
        Verdict.CONFIRMED
        if worse >= needed
        else Verdict.REFUTED
        if len(compared) - better < needed
        else Verdict.UNDECIDED
    )
    told = f"worse in {worse}, better in {better} of {len(compared)} as far as may be claimed; ambient beside sidecar: "
    return Judged(claim=claim, verdict=verdict, measured=told + _listed(compared), plane="ambient", beside="sidecar")


JUDGES: dict[str, Judge] = {
    "two-l4-one-l7": _two_l4_one_l7,
    "ambient-slower": _ambient_slower,
    "l4-suffices-for-mtls": _from_packets(
        "ambient-l4",
        ("hidden", "delivered", "tls", "identity"),
        lambda found: (
            f"on all {_segments(found)} wire segments of {_pairs(found)}, the only calls made: no payload readable "
            "without keys, all of it inside with them, TLS 1.3, SPIFFE identities both ways"
        ),
    ),
    "hbone-carries-metadata": _frames,
}
