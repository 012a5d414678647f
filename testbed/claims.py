"""Claims weighed against what runs measured and found: confirmed, refuted, undecided, or no evidence. Pure.

A judge looks at the findings and figures of one run. Where a claim has none yet, or the run lacks what decides it, the
verdict is `no evidence`: that a run exists proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from testbed import table
from testbed.claimlist import CLAIMS, Claim
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


Judge = Callable[[Claim, table.Summary, Sequence[Finding]], Judged]


def judge(ids: Sequence[str], summary: table.Summary, findings: Sequence[Finding]) -> list[Judged]:
    """One verdict for each claim that an experiment names. Raises UsageError for one that is not in the list."""
    judged = []
    for id_ in ids:
        if id_ not in CLAIMS:
            raise UsageError(f"no claim is called {id_!r}; known: {', '.join(CLAIMS)}")
        judged.append(JUDGES.get(id_, _not_yet)(CLAIMS[id_], summary, findings))
    return judged


def with_claims(
    built: table.Table,
    ids: Sequence[str],
    summary: table.Summary,
    findings: Sequence[Finding],
    implementations: Mapping[str, Mapping[str, str]],
) -> table.Table:
    """The table with one more block, a row a claim."""
    if not ids:
        return built
    rows = []
    tones = {Verdict.REFUTED: "bad", Verdict.NO_EVIDENCE: "weak", Verdict.UNDECIDED: "weak"}
    for one in judge([id_ for id_ in ids if id_ in CLAIMS], summary, findings):
        made = implementations.get(one.plane, {})
        on = " ".join(filter(None, (one.plane, made.get("implementation", ""), made.get("version", "")))) or "–"
        texts = (one.claim.id, f"{one.claim.text} ({', '.join(one.claim.sources)})", one.measured, on)
        cells = [table.Cell(lines=(text,)) for text in texts]
        cells.append(table.Cell(lines=(one.verdict.value,), tone=tones.get(one.verdict, "")))
        rows.append(tuple(cells))
    head = ("claim", "what was said (by whom)", "what was seen", "on", "verdict")
    block = table.Block(title="Claims that this experiment speaks to", head=head, rows=tuple(rows), numeric=False)
    return table.Table(blocks=(*built.blocks, block), notes=built.notes)


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


JUDGES: dict[str, Judge] = {
    "l4-suffices-for-mtls": _from_packets(
        "ambient-l4",
        ("hidden", "delivered", "tls", "identity"),
        lambda found: (
            f"on all {_segments(found)} wire segments: no payload readable without keys, all of it inside with them, "
            "TLS 1.3, SPIFFE identities both ways"
        ),
    ),
    "hbone-carries-metadata": _from_packets(
        "ambient-l4",
        ("alpn", "hbone"),
        lambda found: (
            f"on all {_segments(found)} wire segments, decrypted: HTTP/2, CONNECT with authority and baggage; "
            "but between ztunnels: the waypoint's half takes a plane that has one"
        ),
        best=Verdict.UNDECIDED,
    ),
}
