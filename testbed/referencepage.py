"""The page of the reference runs, as Markdown: what was asked, what came out, how sure it is. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from testbed import axisclaims, stats
from testbed.axistable import spanned
from testbed.claimlist import CLAIMS
from testbed.claims import Judged, Verdict
from testbed.eventseen import Seen, seen
from testbed.fidelity import PREFIX, Level
from testbed.shapes import Data, Runs, looked, pairs
from testbed.table import AA, BASE, MIN_ROUNDS, Summary, ranged
from testbed.typeset import _md as literal

INTRO = """# Reference runs

One run of each experiment in its quick form, by the code of the commit that it names, on one virtual machine of two
cores, which nothing else was meant to use: `results/reference/<experiment>/` has its tables, its page
(`report.html`), every figure, every finding and the certificate of every trial, without single requests, captures and
logs. `./inv report.reference` prints this page from them, `./inv experiment.show reference/quickstart` a run's table,
`./inv report.compare reference/quickstart quickstart/2026` yours beside it.

Absolute figures are those of proxies in Python on that machine; what carries over is said in the README.
"""
REPEAT = """## Repeat it

Each run's page ends with the command that repeats it, seed and all; `./inv experiment.run NAME` draws another seed.
The machine should have nothing else to do: a trial that was disturbed is left out and counted, and says by what.
`./inv report.keep RUN` puts a run in the place of the one that is here. Full forms (`NAME-full`) have 40 rounds and
longer windows; what more rounds would find is in [statistics](statistics.md).
"""
PLANTED = """
A planted +3 % in p50 and +5 % in p99 cannot be put into a real machine's latencies without another doubt; in made ones
they are found as [statistics](statistics.md) says (`./inv bench.power`): on a machine like this at its best +3 % in p50
in 90 of 100 runs of 16 rounds, +5 % in p99 in 97 of 100 of 80 rounds with windows of 10 s. Six rounds, as here, claim
only what is larger than the pair's own interval and the rounds' spread.
"""
SHOWN = ("sidecar", "ambient-l4", "ambient", "node-l7", "hybrid")


def page(runs: Runs) -> str:
    parts = [INTRO, _runs(runs), _headlines(runs), _claims(runs), _shapes(runs), _pairs(runs), REPEAT]
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _runs(runs: Runs) -> str:
    rows = []
    for name, data in runs.items():
        every = {m.trial for m in data.measurements}
        left = {m.trial: m.reason for m in reversed(data.measurements) if not m.valid}
        warned = {m.trial for m in data.measurements if m.metric.startswith(PREFIX) and m.value == Level.WARN}
        company = {m.trial for m in data.measurements if (m.metric, m.value) == (f"{PREFIX}others", Level.WARN)}
        certified = any(m.metric.startswith(PREFIX) for m in data.measurements)
        begun, ended = (datetime.fromisoformat(data.info[key]) for key in ("started", "ended"))
        minutes, seconds = divmod(round((ended - begun).total_seconds()), 60)
        resumed = f", {len(data.info['resumed']) + 1} parts" if data.info["resumed"] else ""
        why = ranged({reason: list(left.values()).count(reason) for reason in left.values()})
        told = "; ".join(f"{count} × {literal(reason)}" for reason, count in why.items()) or "–"
        rows.append(
            (
                f"`{name}`", literal(data.info["plan"]["experiment"]["question"]),
                str(data.info["plan"]["experiment"]["rounds"]), f"{minutes} min {seconds:02d} s{resumed}",
                f"{len(every) - len(left)} of {len(every)}", str(len(warned - left.keys())) if certified else "–",
                str(len(company)) if certified else "–", told,
                str(data.info["commit"]),
            )
        )  # fmt: skip
    head = ("experiment", "question", "rounds", "took", "count", "warned", "with company", "left out", "commit")
    told = (
        "\n*Count*: trials that do. *Warned*: those of them with a warning in their certificate. *With company*: "
        "trials beside which other programs used more than a tenth of the cores. –: such trials have no certificate.\n"
    )
    return "## Runs\n\n" + _table(head, rows) + told


def _headlines(runs: Runs) -> str:
    rows = [(f"`{name}`", told) for name, data in runs.items() if (told := headline(data))]
    return (
        "## What came out\n\nUnder load: p50 beside no mesh in the same rounds, 95 % intervals over rounds in "
        "brackets.\n\n" + _table(("experiment", "result"), rows)
    )


def headline(data: Data) -> str:
    """Of events what was lost, of load what it adds; what is a claim's is told there."""
    experiment = data.info["plan"]["experiment"]
    if experiment.get("streams"):
        return _events(seen(data.measurements), experiment)
    sweep, told = data.sweep, []
    for cell, summary in sweep.summaries.items() if sweep.places else {"": data.summary}.items():
        effects = [_added(summary, plane) for plane in SHOWN if plane in summary.planes]
        if any(effects):
            told.append((f"**{literal(cell)}** " if cell else "") + "; ".join(filter(None, effects)))
    return "<br>".join(told)


def _added(summary: Summary, plane: str) -> str:
    first, second = (summary.rounds(name, "latency_p50") for name in (BASE, AA))
    found = stats.effect(summary.rounds(plane, "latency_p50"), first, second)
    if found is None or found.ratio.rounds < MIN_ROUNDS:
        return ""
    low, middle, high = ((x - 1) * 100 for x in (found.ratio.low, found.ratio.estimate, found.ratio.high))
    text = f"{plane} {middle:+.0f} % [{low:+.0f}, {high:+.0f}]".replace("-", "−")
    return text.replace("ambient−l4", "ambient-l4").replace("node−l7", "node-l7") + (
        "" if found.claimed else " (not claimed)"
    )


def _events(found: Seen, experiment: Mapping[str, object]) -> str:
    told = []
    for cell in experiment["cells"]:  # type: ignore[attr-defined]
        said = []
        for plane in experiment["planes"]:  # type: ignore[attr-defined]
            if not found.count(plane, cell["name"]):
                continue
            streams = found.streams(plane, cell["name"], meant_to_fail=False)
            held = [s for s in streams if found.get(plane, cell["name"], s, "connections_held")]
            short = [s for s in streams if s not in held]
            failed = found.total(plane, cell["name"], short, "failed")
            of, broken = (found.total(plane, cell["name"], held, f"connections_{how}") for how in ("held", "broken"))
            text = (
                f"{failed:.0f} of {found.total(plane, cell['name'], short, 'requests_since'):.0f} short requests failed"
            )
            said.append(f"{plane}: {text}" + (f", {broken:.0f} of {of:.0f} held connections broke" if of else ""))
        if said:
            told.append(f"**{literal(cell['name'])}** " + "; ".join(said))
    return "<br>".join(told)


def _claims(runs: Runs) -> str:
    newest: dict[str, tuple[str, Judged]] = {}
    for name, data in sorted(runs.items(), key=lambda pair: pair[1].info["started"]):
        named = [id_ for id_ in data.info["plan"]["experiment"].get("claims", ()) if id_ in CLAIMS]
        for one in axisclaims.judge(named, data.info, data.measurements, data.findings):
            if one.verdict is not Verdict.NO_EVIDENCE or one.claim.id not in newest:
                newest[one.claim.id] = name, one
    rows = []
    for id_, claim in CLAIMS.items():
        if id_ in newest:
            name, one = newest[id_]
            rows.append(
                (f"`{id_}`", literal(claim.text), f"**{one.verdict.value}**", literal(one.measured), f"`{name}`")
            )
    unsaid = ", ".join(f"`{id_}`" for id_ in CLAIMS if id_ not in newest)
    return (
        "## Claims\n\nThe same as `./inv claims` in a fresh clone.\n\n"
        + _table(("claim", "what was said", "verdict", "what was seen", "run"), rows)
        + (f"\nWithout a reference run that speaks to them: {unsaid}.\n" if unsaid else "")
    )


def _shapes(runs: Runs) -> str:
    rows = [(literal(shape.text), f"**{seen_.result.value}**", literal(seen_.told)) for shape, seen_ in looked(runs)]
    return (
        "## Published shapes\n\nWhat others measured of Istio's own data planes, as an order, a ratio or a sign "
        "(`testbed/shapes.py`), and whether it came out here (`./inv report.shapes`).\n\n"
        + _table(("shape", "here", "seen"), rows)
    )


def _pairs(runs: Runs) -> str:
    """How far two of the same are apart: the least that a run could have claimed."""
    rows = []
    for name, data in runs.items():
        for cell, summary in data.sweep.summaries.items() if data.sweep.places else {"": data.summary}.items():
            texts = []
            for metric in ("latency_p50", "latency_p90", "latency_p99"):
                first, second = summary.rounds(BASE, metric), summary.rounds(AA, metric)
                found = stats.effect(second, first, second, against=first)
                texts.append("–" if found is None or found.aa is None else spanned(found.aa))
            if texts != ["–"] * 3:
                rows.append((f"`{name}` {literal(cell)}".strip(), *texts))
    held, total = pairs(runs)
    return (
        "## Two of the same, and a planted difference\n\nThe A/A pair of each cell, the second half to the first, as a "
        f"ratio. Of {total} intervals over six rounds or more {held} hold 1.\n\n"
        + _table(("A/A", "p50", "p90", "p99"), rows)
        + PLANTED
    )
