"""Findings of attempts -> one row a component under each plane: what it is worth to who gets into it. Pure.

Counted from what happened and not from the model. A key is one that was opened; an identity is one in whose name some
call was answered; a pair is a source and a destination between which a call was answered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from testbed.attack.model import UNPROVEN
from testbed.model.experiment import Finding, Result
from testbed.plots import BarRow
from testbed.table import Block, Cell, Table

PREFIX = "blast."
GOT, PAST, REFUSED = "got", "got past policy", "refused"
"""Values of such a finding."""
COLUMNS = ("keys", "identities", "pairs", "past policy", "L7 rules", "read", "lost")
PLOTTED = ("identities", "past policy", "read", "lost")
TITLE = "An attacker's code inside a component: what it was seen to get"
NOTES = (
    "keys: private keys it could open; identities: those in whose name some call of its was answered; pairs: source "
    "and destination of answered calls, past policy: those that L4 policy denies; L7 rules: denials about HTTP that it "
    "went around; read: calls of others, of those that policy allows, whose plaintext it could read; lost: allowed "
    "calls that failed once it was killed; as modelled: of all attempts, those that came out as the model says; a "
    "neighbour lies on the wire between two nodes and is root of his own machine",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    plane: str
    component: str
    role: str
    counts: Mapping[str, int]
    attempts: int
    as_modelled: int
    unproven: int

    @property
    def label(self) -> str:
        return f"{self.plane}, {self.component}"


def scores(findings: Sequence[Finding]) -> list[Score]:
    """Planes in the order in which they were tried, of each first its application, last who lies on the wire."""
    found: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.id.startswith(PREFIX):
            component = finding.id.removeprefix(PREFIX).partition("/")[0]
            found[finding.plane, component].append(finding)
    made = [_score(plane, component, rows) for (plane, component), rows in found.items()]
    planes = list(dict.fromkeys(score.plane for score in made))
    return sorted(made, key=lambda s: (planes.index(s.plane), s.role == "neighbour", s.role != "app"))


def _score(plane: str, component: str, rows: Sequence[Finding]) -> Score:
    got = [(name(f).split("/"), f.value) for f in rows if f.value in (GOT, PAST) and f.result is not Result.NO_EVIDENCE]
    pairs = {(parts[2], parts[3]): value for parts, value in got if parts[0] == "reach"}
    return Score(
        plane=plane, component=component, role=rows[0].segment,
        counts={
            "keys": sum(parts[0] == "key" for parts, _ in got),
            "identities": len({source for source, _ in pairs} - {UNPROVEN}),
            "pairs": len(pairs),
            "past policy": sum(value == PAST for value in pairs.values()),
            "L7 rules": len({parts[1].split(">")[-1] for parts, _ in got if parts[0] in ("secret", "secret-key")}),
            "read": sum(parts[0] == "read" for parts, _ in got),
            "lost": sum(parts[0] == "lost" for parts, _ in got),
        },
        attempts=len(rows), as_modelled=sum(f.result is Result.HOLDS for f in rows),
        unproven=sum(f.result is Result.NO_EVIDENCE for f in rows),
    )  # fmt: skip


def name(finding: Finding) -> str:
    """`reach/as/web/cart` of `blast.ztunnel.node-a/reach/as/web/cart`."""
    return finding.id.partition("/")[2]


def with_matrix(built: Table, findings: Sequence[Finding]) -> Table:
    """The table with this block first, where anybody was attacked."""
    rows, first = [], len(built.notes) + 1
    for score in scores(findings):
        short = score.attempts - score.as_modelled
        told = f"{score.as_modelled}/{score.attempts}" + (f", {score.unproven}?" if score.unproven else "")
        counted = (Cell(lines=(str(score.counts[c]),), tone="bad" if c == "past policy" and score.counts[c] else "")
                   for c in COLUMNS)  # fmt: skip
        rows.append((Cell(lines=(score.label,)), *counted, Cell(lines=(told,), tone="bad" if short else "")))
    if not rows:
        return built
    rows[0] = (*rows[0][:-1], Cell(lines=rows[0][-1].lines, tone=rows[0][-1].tone, note=first + len(NOTES) - 1))
    head = ("plane, component", *COLUMNS, "as modelled")
    block = Block(title=TITLE, head=head, rows=tuple(rows))
    return Table(blocks=(block, *built.blocks), notes=(*built.notes, *NOTES))


def bars(findings: Sequence[Finding]) -> list[BarRow]:
    """For the report's plot, whose labels have less room."""
    return [
        BarRow(label=f"{score.plane}, {score.role}", parts={name: float(score.counts[name]) for name in PLOTTED})
        for score in scores(findings)
    ]
