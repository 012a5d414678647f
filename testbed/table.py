"""Tidy measurements and findings -> the table of a run: one row per plane, then what its boundaries were seen to do.

`summarise` makes numbers, `build` makes blocks of cells; `typeset` sets them for a terminal or as Markdown, `report` as
HTML. A trial with any invalid row is left out whole and counted. Latency across rounds is the median of the rounds'
percentiles; what a plane adds is paired: its value minus that of `none` in the same round, trimmed mean over rounds,
with `stats.block_interval` (requests inside a trial depend on each other, rounds do not). Nothing is filled in: what
was not measured is `–` with a note.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd

from testbed import stats
from testbed.model.experiment import DOCUMENTED, Finding, Measurement, Result

BASE = "none"
AA = "none (A/A)"
NOT_PROXIES = ("client", "app", "wire", "kernel", "host", "testbed")
"""Components that are no part of a data plane; every other one counts as a proxy."""
BOUNDARIES = {
    "boundary.identities-held": "identities held",
    "boundary.plaintext-visible": "plaintext visible",
    "boundary.plaintext-to-strict": "plaintext to STRICT",
    "boundary.wrong-identity": "other trust domain",
    "boundary.wrong-identity-waypoint": "… at the waypoint",
    "boundary.forged-identity": "forged identity",
    "boundary.l4-denied": "denied by L4 policy",
    "boundary.l4-denied-direct": "… past the proxy",
    "boundary.foreign-authority": "other pod's authority",
    "boundary.l7-denied": "denied by L7 policy",
    "boundary.l7-denied-pod-ip": "… by pod address",
    "boundary.l7-allow": "L7 ALLOW, no waypoint",
}
MIN_ROUNDS = 3
"""Below this an interval over rounds says nothing and is not printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """A paired difference to `none`: trimmed mean over rounds and its 95 % interval (None where it has no end)."""

    value: float
    low: float | None
    high: float | None
    per_round: Mapping[int, float]

    @property
    def includes_zero(self) -> bool | None:
        return None if self.low is None or self.high is None else self.low <= 0 <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    planes: tuple[str, ...]
    """`none` first, its A/A twin second, then in the experiment's order."""
    frame: pd.DataFrame
    """Rows of valid trials only; components folded to their role (`ztunnel.node-a` -> `ztunnel`)."""
    valid: Mapping[str, int]
    left_out: Mapping[str, Mapping[str, int]]
    """Plane -> reason -> trials."""

    def rounds(self, plane: str, metric: str, component: str | None = "client") -> dict[int, float]:
        """One value a round. `component` None is the sum over proxies (CPU, memory)."""
        f = self.frame
        f = f[(f.plane == plane) & (f.metric == metric)]
        f = f[~f.component.isin(NOT_PROXIES)] if component is None else f[f.component == component]
        if f.empty:
            return {}
        per_trial = f.groupby(["round", "trial"], sort=True)["value"].sum(min_count=1)
        return {int(r): float(v) for r, v in per_trial.groupby(level="round").median().items()}

    def median(self, plane: str, metric: str, component: str | None = "client") -> float | None:
        values = list(self.rounds(plane, metric, component).values())
        return statistics.median(values) if values else None

    def added(self, plane: str, metric: str, component: str | None = "client", base: str = BASE) -> Added | None:
        """Against `base`, paired; None where no round has both."""
        theirs, mine = self.rounds(base, metric, component), self.rounds(plane, metric, component)
        per_round = {r: mine[r] - theirs[r] for r in sorted(theirs.keys() & mine.keys())}
        if not per_round or plane == base:
            return None
        differences = list(per_round.values())
        low, high = interval(differences)
        return Added(value=stats.trimmed_mean(differences), low=low, high=high, per_round=per_round)

    def components(self, metric: str) -> tuple[str, ...]:
        """Proxies first, then the rest in a fixed order."""
        seen = set(self.frame[self.frame.metric == metric].component)
        return (*sorted(seen - set(NOT_PROXIES)), *(c for c in NOT_PROXIES if c in seen))

    @property
    def resolution_ms(self) -> dict[str, float]:
        """Per latency metric, how large a difference the A/A pair alone shows: the far end of its interval."""
        found = {}
        for metric in ("latency_p50", "latency_p90", "latency_p99"):
            pair = self.added(AA, metric)
            if pair and pair.low is not None and pair.high is not None:
                found[metric] = max(abs(pair.low), abs(pair.high))
        return found


def summarise(measurements: Sequence[Measurement], order: Sequence[str] = ()) -> Summary:
    """`order` is that of the experiment's planes; each round measures them in another."""
    broken = {m.trial: m.reason or "no reason given" for m in reversed(measurements) if not m.valid}
    planes = list(dict.fromkeys(m.plane for m in measurements))
    rank = {plane: number for number, plane in enumerate(order)}
    planes.sort(key=lambda p: (p != BASE, p != AA, rank.get(p, len(rank))))
    of_plane: dict[str, set[str]] = defaultdict(set)
    for m in measurements:
        of_plane[m.plane].add(m.trial)
    frame = pd.DataFrame(
        [
            (m.round, m.trial, m.plane, _folded(m), m.metric, m.unit, m.value)
            for m in measurements
            if m.trial not in broken
        ],
        columns=["round", "trial", "plane", "component", "metric", "unit", "value"],
    )
    return Summary(
        planes=tuple(planes),
        frame=frame.dropna(subset=["value"]),
        valid={p: len(of_plane[p] - broken.keys()) for p in planes},
        left_out={p: dict(Counter(broken[t] for t in sorted(of_plane[p] & broken.keys()))) for p in planes},
    )


def _folded(m: Measurement) -> str:
    """CPU and memory of `ztunnel.node-a` and `ztunnel.node-b` are one column, and those of a real Envoy stand in that
    of the role it has; a link keeps its whole name."""
    if m.metric not in ("cpu_per_1000_requests", "memory_pss", "cpu_idle"):
        return m.component
    role = m.component.partition(".")[0]
    return "ztunnel" if role == "envoy" else role.removeprefix("envoy-")


def interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """`stats.block_interval` over rounds; always the same seed, so that a table can be made again."""
    return _interval(tuple(values)) if len(values) >= MIN_ROUNDS else (None, None)


@cache
def _interval(values: tuple[float, ...]) -> tuple[float, float] | tuple[None, None]:
    found = stats.block_interval(values)
    return (found.low, found.high) if math.isfinite(found.low + found.high) else (None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    lines: tuple[str, ...]
    tone: str = ""
    """`bad` for a broken boundary, `weak` for what is missing or not told apart from nothing."""
    note: int | None = None
    """Number of its footnote, from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: bool = True
    """Columns after the first are numbers, set flush right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]


class _Notes:
    """Footnotes, each text once."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1

    def missing(self, text: str) -> Cell:
        return Cell(lines=("–",), tone="weak", note=self.number(text))


def build(summary: Summary, findings: Sequence[Finding]) -> Table:
    notes = _Notes()
    blocks = [_latency(summary, notes), _cost(summary, notes), _machine(summary)]
    if findings:
        blocks.append(_boundaries(summary, findings, notes))
    return Table(blocks=tuple(b for b in blocks if b.rows), notes=tuple(notes.texts))


def _latency(summary: Summary, notes: _Notes) -> Block:
    rows = []
    for plane in summary.planes:
        row = [Cell(lines=(plane,), note=_few_rounds(summary, plane, notes))]
        for metric in ("latency_p50", "latency_p90", "latency_p99"):
            value = summary.median(plane, metric, "client")
            row.append(_number(value) if value is not None else notes.missing(_why(summary, plane, metric)))
        row += [_added(summary, plane, metric, notes) for metric in ("latency_p50", "latency_p99")]
        row.append(_trials(summary, plane, notes))
        rows.append(tuple(row))
    head = ("plane", "p50 ms", "p90 ms", "p99 ms", "added p50 ms [95 %]", "added p99 ms [95 %]", "trials")
    return Block(title="Latency, from the intended send time to the last byte", head=head, rows=tuple(rows))


def _few_rounds(summary: Summary, plane: str, notes: _Notes) -> int | None:
    """That an interval over so few rounds is no claim, where there is one."""
    added = summary.added(plane, "latency_p50")
    rounds = len(added.per_round) if added else 0
    if not MIN_ROUNDS <= rounds < stats.MIN_ROUNDS_TO_CLAIM:
        return None
    return notes.number(
        f"{rounds} rounds pair with {BASE}; a claim takes {stats.MIN_ROUNDS_TO_CLAIM}: with fewer, even signs that all "
        f"agree come by chance once in {2 ** (rounds - 1)}"
    )


def _added(summary: Summary, plane: str, metric: str, notes: _Notes) -> Cell:
    if plane == BASE:
        return Cell(lines=("",))
    added = summary.added(plane, metric)
    if added is None:
        return notes.missing(f"no round in which both {plane} and {BASE} were measured")
    if added.low is None or added.high is None:
        rounds = len(added.per_round)
        few = notes.number(f"an interval needs {MIN_ROUNDS} rounds with both planes; there are fewer")
        return Cell(lines=(f"{signed(added.value)} [–] n={rounds}",), tone="weak", note=few)
    text = f"{signed(added.value)} [{signed(added.low)}, {signed(added.high)}]"
    limit = summary.resolution_ms.get(metric, 0.0)
    if plane != AA and (added.includes_zero or abs(added.value) <= limit):
        return Cell(
            lines=(text,), tone="weak", note=notes.number("not told apart from the A/A pair, that is from nothing")
        )
    return Cell(lines=(text,))


_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def ranged(reasons: Mapping[str, int]) -> dict[str, int]:
    """Reasons that differ in their figures only, as one: `send lag p99 5.07 to 6.90 ms`."""
    alike: dict[str, list[str]] = {}
    for reason in reasons:
        alike.setdefault(_NUMBER.sub("\0", reason), []).append(reason)
    told = {}
    for shape, texts in alike.items():
        columns = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
        spans = [sorted(set(column), key=float) for column in columns]
        for span in spans:
            shape = shape.replace("\0", span[0] if len(span) == 1 else f"{span[0]} to {span[-1]}", 1)
        told[shape] = sum(reasons[text] for text in texts)
    return told


def _trials(summary: Summary, plane: str, notes: _Notes) -> Cell:
    valid, reasons = summary.valid[plane], summary.left_out[plane]
    if not reasons:
        return Cell(lines=(str(valid),))
    told = "; ".join(f"{count} × {reason}" for reason, count in ranged(reasons).items())
    total = valid + sum(reasons.values())
    return Cell(
        lines=(f"{valid} of {total}",), tone="" if valid else "bad", note=notes.number(f"{plane}, left out: {told}")
    )


def _cost(summary: Summary, notes: _Notes) -> Block:
    cpu, memory = summary.components("cpu_per_1000_requests"), summary.components("memory_pss")
    columns: list[tuple[str, str, str | None]] = []
    for short, metric, components in (("CPU", "cpu_per_1000_requests", cpu), ("PSS", "memory_pss", memory)):
        proxies = [c for c in components if c not in NOT_PROXIES]
        columns.append((f"{short}: proxies", metric, None))
        columns += [(f"{short}: {c}", metric, c) for c in proxies] if len(proxies) > 1 else []  # one kind is the sum
        whole = ("app",) if summary.components(MACHINE) else NOT_PROXIES  # the others have a block of their own
        columns += [(f"{short}: {c}", metric, c) for c in components if c in whole] if short == "CPU" else []
    edges = max((summary.median(p, "edges") or 0 for p in summary.planes), default=0)
    if edges > 1:
        columns.insert(1, ("CPU: per edge", "cpu_per_1000_requests", None))
    if summary.components("cpu_idle"):
        columns.append(("idle: proxies", "cpu_idle", None))
    rows = []
    for plane in summary.planes:
        row = [Cell(lines=(plane,))]
        for title, metric, component in columns:
            value = summary.median(plane, metric, component)
            if value is not None:
                row.append(_number(value / edges if "per edge" in title else value))
            elif summary.valid[plane]:
                row.append(notes.missing(f"nothing of that kind was measured under that plane; {BASE} has no proxies"))
            else:
                row.append(notes.missing(_why(summary, plane, metric)))
        rows.append(tuple(row))
    head = ("plane", *(title for title, _, _ in columns))
    title = "Cost: CPU ms per 1,000 requests, memory PSS MiB"
    title += ", idle ms of CPU a second" if summary.components("cpu_idle") else ""
    return Block(title=title, head=head, rows=tuple(rows) if cpu or memory else ())


MACHINE = "cpu_machine_per_1000_requests"
WHOLE = (
    ("proxies", "cpu_per_1000_requests", None),
    *((who, "cpu_per_1000_requests", who) for who in ("app", "client", "wire", "kernel", "testbed")),
    ("other programs", "cpu_others_per_1000_requests", "host"),
)
"""Whoever spends CPU while load runs. `kernel` are its threads: soft interrupts, such as veth forwarding, mostly run in
whoever sent the frame and are charged to it."""


def _machine(summary: Summary) -> Block:
    """Everybody's CPU beside that of the whole machine: what nobody is charged with may belong to a plane."""
    rows = []
    for plane in summary.planes:
        machine = summary.rounds(plane, MACHINE, "host")
        if not machine:
            continue
        spent = {title: summary.rounds(plane, metric, component) for title, metric, component in WHOLE}
        known = {n: sum(values.get(n, 0.0) for values in spent.values()) for n in machine}
        row = [Cell(lines=(plane,))]
        row += [_number(statistics.median(its.values())) if its else Cell(lines=("",)) for its in spent.values()]
        row.append(_number(statistics.median(machine.values())))
        softirq = summary.median(plane, "cpu_softirq_per_1000_requests", "host")
        row.append(Cell(lines=("",)) if softirq is None else _number(softirq))
        share = statistics.median(min(1.0, known[n] / machine[n]) if machine[n] else 1.0 for n in machine)
        row.append(Cell(lines=(f"{share:.0%}",), tone="weak" if share < LEAST_EXPLAINED else ""))
        rows.append(tuple(row))
    head = ("plane", *(title for title, _, _ in WHOLE), "whole machine", "of it softirq", "explained")
    return Block(title="The whole machine's CPU under load, ms per 1,000 requests", head=head, rows=tuple(rows))


LEAST_EXPLAINED = 0.9


def _why(summary: Summary, plane: str, metric: str) -> str:
    return f"{plane}: no valid trial" if not summary.valid[plane] else f"{plane}: {metric} was not measured"


def _boundaries(summary: Summary, findings: Sequence[Finding], notes: _Notes) -> Block:
    planes = [p for p in dict.fromkeys([*summary.planes, *(f.plane for f in findings)]) if p != AA]
    ids = list(BOUNDARIES) + sorted({f.id for f in findings if f.id.startswith("boundary.")} - BOUNDARIES.keys())
    if any(f.id.startswith("blast.") for f in findings):  # its own topology lacks what some of these need
        ids = [id_ for id_ in ids if any(f.id == id_ for f in findings)]
    rows = []
    for id_ in ids:
        row = [Cell(lines=(BOUNDARIES.get(id_, id_.removeprefix("boundary.").replace("-", " ")),))]
        row += [boundary_cell([f for f in findings if f.id == id_ and f.plane == p], notes) for p in planes]
        rows.append(tuple(row))
    proved = [Cell(lines=("judged from packets",))]
    for plane in planes:
        results = Counter(f.result for f in findings if f.plane == plane and f.id.startswith("packets."))
        words = [f"{results[r]} {w}" for r, w in _RESULT_WORDS.items() if results[r]]
        tone = "bad" if results[Result.BROKEN] else ""
        told = (
            Cell(lines=(", ".join(words),), tone=tone) if words else notes.missing(f"{plane}: no packets were judged")
        )
        proved.append(told)
    rows.append(tuple(proved))
    return Block(title="Boundaries, as tried", head=("", *planes), rows=tuple(rows), numeric=False)


_RESULT_WORDS = {Result.HOLDS: "hold", Result.BROKEN: "broken", Result.NO_EVIDENCE: "without evidence"}


def boundary_cell(findings: Sequence[Finding], notes: _Notes) -> Cell:
    """Findings of one boundary under one plane; equal outcomes of several segments share a line."""
    if not findings:
        return notes.missing("not tried under that plane")
    groups: dict[tuple[Result, str], list[str]] = defaultdict(list)
    for f in findings:
        groups[(f.result, f.value or _RESULT_WORDS[f.result])].append(f.segment)
    order = [Result.BROKEN, Result.NO_EVIDENCE, Result.HOLDS]
    # Who holds keys and where it was readable is half of these answers; elsewhere a lone outcome needs no place.
    places = len(groups) > 1 or findings[0].id in ("boundary.identities-held", "boundary.plaintext-visible")
    lines = []
    for (result, value), segments in sorted(groups.items(), key=lambda g: order.index(g[0][0])):
        prefix = {Result.BROKEN: "BROKEN: ", Result.NO_EVIDENCE: "? "}.get(result, "")
        names = [s for s in dict.fromkeys(segments) if s]
        where = ", ".join(names) if len(names) < 3 else f"{len(names)} places"
        where = "" if len(groups) == 1 and where in ("components", "wire") else where
        lines.append(prefix + (f"{where}: " if where and places else "") + value.replace("not applicable: ", "n/a: "))
    results = {f.result for f in findings}
    if Result.BROKEN in results:
        statements = "; ".join(
            dict.fromkeys(f"{f.plane}: {f.statement}" for f in findings if f.result is Result.BROKEN)
        )
        return Cell(lines=tuple(lines), tone="bad", note=notes.number(f"broken under {statements}"))
    if Result.NO_EVIDENCE in results:
        why = next(f.evidence for f in findings if f.result is Result.NO_EVIDENCE)
        return Cell(lines=tuple(lines), tone="weak", note=notes.number(f"no evidence: {why}" if why else "no evidence"))
    why = "; ".join(dict.fromkeys(f.statement.partition(DOCUMENTED)[2] for f in findings if DOCUMENTED in f.statement))
    return Cell(lines=tuple(lines), note=notes.number(f"as documented: {why}") if why else None)


# -- numbers ----------------------------------------------------------------------------------------------------------


def digits(value: float) -> str:
    """Three significant digits, never in exponent form, never more than three decimals."""
    size = abs(value)
    decimals = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def signed(value: float) -> str:
    """With its sign, but for nothing."""
    text = digits(value)
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def _number(value: float) -> Cell:
    return Cell(lines=(digits(value),))
