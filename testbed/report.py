"""A run's folder -> `table.md` and `report.html`: one file, no script, no network, light or dark.

Everything that came from a file is escaped where it enters the page. What was left out is there with its reason; a
section without data says that there is none.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from testbed import (
    axisclaims,
    axisplots,
    cells,
    claims,
    drawing,
    fidelity,
    fidelitytable,
    plots,
    stats,
    table,
    timelines,
    typeset,
)
from testbed.attack import matrix
from testbed.axis import Sweep
from testbed.claimlist import CLAIMS
from testbed.errors import UsageError
from testbed.hops import drawn
from testbed.hops.shown import BARS
from testbed.model.experiment import Finding, Measurement, Result
from testbed.store import Run, write_whole

LATENCIES = ("latency_p50", "latency_p90", "latency_p99")
COMPONENTS = ("client", "app", "sidecar", "ztunnel", "waypoint", "node-l7", "wire", "kernel", "testbed")
"""In the order of their colours: greys for what every plane has, a proxy in that of the plane that is made of it."""


def build(run_path: Path | str) -> Path:
    """Writes both files and returns the report's path. The run may still be unfinished; the page then says so."""
    run = Run.open(run_path)
    if run.info.get("kept"):
        raise UsageError(f"{run_path} was kept without its requests, so its page cannot be made again; it is there")
    table_md, page = rendered(run)
    write_whole(run.path / "table.md", table_md.encode())
    write_whole(run.path / "report.html", page.encode())
    return run.path / "report.html"


def rendered(run: Run) -> tuple[str, str]:
    """`table.md` and `report.html`."""
    measurements, findings = run.measurements(), run.findings()
    named = run.info["plan"]["experiment"].get("claims", ())
    judged = axisclaims.judge([id_ for id_ in named if id_ in CLAIMS], run.info, measurements, findings)
    over_axis = axisplots.page(Sweep(run.info, measurements))
    hops = drawn.page(measurements)
    built = cells.table_of(run.info, measurements, findings)
    swept, every = cells.names(run.info), measurements
    # Plots look at one cell, the table above them has all; what happens in one is drawn for each.
    if swept and not run.info["plan"]["experiment"].get("streams"):
        measurements = cells.of(measurements, swept[0])
    summary = table.summarise(measurements, order=run.info["plan"]["experiment"]["planes"])
    built = claims.with_claims(built, named, summary, findings, run.info.get("planes", {}), judged)
    heading = f"{run.info['experiment']} {run.info['run']}"
    page = _page(run, measurements, every, findings, summary, built, over_axis, hops)
    return typeset.as_markdown(built, heading=heading), page


def missing_requests(run: Run) -> list[str]:
    """Files of stored requests that the run's journal names and that are gone."""
    return [path.name for path in run.request_files().values() if not path.exists()]


def told_missing(names: Sequence[str]) -> str:
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"{len(names)} files of requests are gone from the run, so the curves of single requests lack these trials: "
        f"{some}. The tables do not: they come from measurements.csv. Restore the files from a copy"
    )


def _page(
    run: Run,
    measurements: Sequence[Measurement],
    every: Sequence[Measurement],
    findings: Sequence[Finding],
    summary: table.Summary,
    built: table.Table,
    over_axis: str,
    hops: str,
) -> str:
    """`measurements` are of one cell, `every` of all."""
    info = run.info
    experiment = info["plan"]["experiment"]
    planes = summary.planes
    parts = [
        f"<h1>{_e(experiment['name'])}</h1><p class=question>{_e(experiment['question'])}</p>",
        f"<p class=dim>run {_e(info['run'])}, {_e(info['started'])} to {_e(info['ended'] or 'not finished')}"
        + (f", resumed {len(info['resumed'])} times" if info["resumed"] else "")
        + "</p>",
        _warnings(run, summary),
        *_verdict(run, every, findings, [b for b in built.blocks if b.title == claims.TITLE]),
        hops,
        over_axis,
        *(_block(b) for b in built.blocks if b.title != claims.TITLE and BARS not in b.title),
        _notes(built.notes),
        "<p class=dim>Absolute figures are those of the implementations named below on this machine. What carries over "
        "is the difference between planes in the same run.</p>",
        *(_eventful(run, measurements) if experiment.get("streams") else _measured(run, summary, measurements)),
        _attacked(findings),
        "<h2>What packets proved</h2>",
        "<p>A closed padlock: packets proved encryption there. Open: they proved cleartext. <b>?</b>: no evidence.</p>",
        *(
            drawing.draw(
                info["plan"]["topology"],
                [f for f in findings if f.plane == p],
                title=f"plane {p}",
                proxies=info.get("proxies", {}).get(p, ()),
            )
            for p in planes
            if p != table.AA
        ),
        _findings(findings),
        "<h2>Was the testbed itself good enough?</h2>",
        _fidelity(info, measurements, summary),
        _causes(every),
        _limits(info),
        _left_out(every),
        "<h2>The machine and the plan</h2>",
        _facts(info),
        f"<h2>Repeat it</h2><pre>{_e(info.get('command') or 'no command was recorded')}</pre>",
    ]
    style = (files("testbed") / "report.css").read_text()
    head = (
        f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{_e(experiment['name'])}</title>"
    )
    body = f"<main>{''.join(parts)}</main>"
    return f"<!doctype html><html lang=en><head>{head}<style>{style}</style></head><body>{body}</body></html>"


def _measured(run: Run, summary: table.Summary, measurements: Sequence[Measurement]) -> list[str]:
    return [
        f"<p class=dim>From here on: the cell {_e(swept[0])}.</p>" if (swept := cells.names(run.info)) else "",
        "<h2>Latency</h2>",
        _latency(run, summary, measurements),
        "<h2>Cost</h2>",
        _cost(summary),
    ]


def _eventful(run: Run, measurements: Sequence[Measurement]) -> list[str]:
    """Of one round every request, as it went."""
    return ["<h2>Who was served when</h2>", *timelines.sections(run, measurements)]


def _warnings(run: Run, summary: table.Summary) -> str:
    out = []
    kept = run.info.get("kept")
    if not kept and (names := run.captures_with_secrets()):
        out.append(
            f"Captures hold TLS secrets: {_e(', '.join(names))}. Whoever has these files can read all traffic in them. "
            "They are for labs only; do not pass them on with keys of anything real."
        )
    if gone := missing_requests(run):
        out.append(f"{_e(told_missing(gone))}.")
    if run.info["ended"] is None:
        out.append("This run is not finished; the page shows its whole trials only.")
    if dead := [p for p in summary.planes if not summary.valid[p]]:
        out.append(f"No valid trial for: {_e(', '.join(dead))}.")
    told = "".join(f"<p class=warning role=alert>{text}</p>" for text in out)
    if kept:
        without = ", ".join(kept["without"])
        told += f"<p class=dim>A reference run that came with the code, kept without its {_e(without)}.</p>"
    return told


def _verdict(
    run: Run, measurements: Sequence[Measurement], findings: Sequence[Finding], judged: Sequence[table.Block]
) -> list[str]:
    """First what it comes to: whether the run counts, and what it says of the claims that it speaks to."""
    if run.info["ended"] is None or not measurements:
        return []
    trials = {m.trial for m in measurements}
    counting = trials - {m.trial for m in measurements if not m.valid}
    told = [f"{len(counting)} of {len(trials)} trials count"]
    warned = {m.trial for m in measurements if m.metric.startswith(fidelity.PREFIX) and m.value == fidelity.Level.WARN}
    if warned & counting:
        told[0] += f", {len(warned & counting)} of them with a warning in their certificate"
    if findings:
        broken, open_ = (sum(f.result is r for f in findings) for r in (Result.BROKEN, Result.NO_EVIDENCE))
        told.append(f"of {len(findings)} findings {broken or 'none'} broken, {open_ or 'none'} without evidence")
    tone = "bad" if any(f.result is Result.BROKEN for f in findings) or not counting else ""
    return ["<h2>Verdict</h2>", f"<p class='{tone}'>{_e('; '.join(told))}.</p>", *(_block(b) for b in judged)]


LONG = 160
"""Characters of a cell beyond which its table stands as a list on a small screen."""


def _block(block: table.Block) -> str:
    kind = "numbers" if block.numeric else "words"
    if any(len(text) > LONG for row in block.rows for entry in row for text in entry.lines):
        kind += " long"
    head = "".join(f"<th scope=col>{_broken(h)}</th>" for h in block.head)
    rows = []
    for row in block.rows:
        note = f"<sup>{row[0].note}</sup>" if row[0].note else ""
        cells = [f"<th scope=row>{_e(' '.join(row[0].lines))}{note}</th>"]
        for of, cell in zip(block.head[1:], row[1:], strict=True):
            note = f"<sup>{cell.note}</sup>" if cell.note else ""
            lines = "<br>".join(_e(_kept(t)) for t in cell.lines)
            cells.append(f"<td class='{cell.tone}' data-of='{_e(of)}'>{lines}{note}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    body = f"<table class='{kind}'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<h3>{_e(block.title)}</h3>{_scroll(body, block.title)}"


def _scroll(body: str, title: str) -> str:
    """What is wider than the page, for fingers and for keys."""
    return f"<div class=scroll tabindex=0 role=region aria-label='{_e(title)}'>{body}</div>"


def _broken(name: str) -> str:
    """A plane with options may break at them."""
    return re.sub("([:=])", r"\1<wbr>", _e(name))


def _kept(text: str) -> str:
    """A number and its unit on one line."""
    return text.replace(" %", "\u00a0%").replace(" ms", "\u00a0ms").replace(" MiB", "\u00a0MiB")


def _notes(notes: Sequence[str]) -> str:
    return f"<ol class=notes>{''.join(f'<li>{_e(n)}</li>' for n in notes)}</ol>" if notes else ""


def _latency(run: Run, summary: table.Summary, measurements: Sequence[Measurement]) -> str:
    absolute, added, colours = [], [], _colours(summary)
    for plane in summary.planes:
        i = colours.index(plane)
        for metric in LATENCIES:
            values = list(summary.rounds(plane, metric).values())
            low, high = table.interval(values)
            middle = stats.trimmed_mean(values) if values else None
            label = f"{plane} {metric.removeprefix('latency_')}"
            absolute.append(plots.DotRow(label=label, points=values, value=middle, low=low, high=high, series=i))
        for metric in ("latency_p50", "latency_p99"):
            if (a := summary.added(plane, metric)) is not None:
                points, label = list(a.per_round.values()), f"{plane} {metric.removeprefix('latency_')}"
                added.append(plots.DotRow(label=label, points=points, value=a.value, low=a.low, high=a.high, series=i))
    if not any(row.points for row in absolute):
        return f"<p class=dim>{'No latency' if measurements else 'Nothing'} was measured.</p>"
    parts = [plots.dots(absolute, unit="ms", title="Latency by plane: a dot a round, trimmed mean and 95 % interval")]
    if added:
        parts.append(plots.dots(added, unit="ms", title="Added latency against none, paired by round"))
    gone = len(missing_requests(run))
    title = "All stored requests of valid trials, up to p99" + (f"; {gone} trials are missing" if gone else "")
    requests = _ecdf(run, summary, measurements)
    parts.append(plots.curves(requests, names=colours, unit="ms", title=title))
    title = "The same by percentile, towards the slowest" + (f"; {gone} trials are missing" if gone else "")
    parts.append(plots.quantiles(requests, names=colours, unit="ms", title=title))
    return "".join(parts)


def _colours(summary: table.Summary) -> list[str]:
    """Planes by the numbers of their colours: the two greys are for no mesh and its twin, there or not."""
    return [table.BASE, table.AA, *(plane for plane in summary.planes if plane not in (table.BASE, table.AA))]


def _ecdf(run: Run, summary: table.Summary, measurements: Sequence[Measurement]) -> dict[str, list[float]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    plane_of = {m.trial: m.plane for m in measurements}
    bad = {m.trial for m in measurements if not m.valid}
    values: dict[str, list[float]] = {p: [] for p in summary.planes}
    for trial, path in run.request_files().items():
        if trial in plane_of and trial not in bad and path.exists():
            try:
                columns = pq.read_table(path, columns=["intended_s", "last_byte_s", "error"])
            except (pa.ArrowException, OSError) as error:
                raise UsageError(f"{path}: does not read as requests ({error}); restore it from a copy") from error
            rows = zip(*(columns.column(c).to_pylist() for c in ("intended_s", "last_byte_s", "error")), strict=True)
            values[plane_of[trial]] += [(last - intended) * 1000 for intended, last, error in rows if not error]
    return values


def _cost(summary: table.Summary) -> str:
    parts = []
    found = [*summary.components("cpu_per_1000_requests"), *summary.components("memory_pss")]
    names = [*COMPONENTS, *(name for name in dict.fromkeys(found) if name not in COMPONENTS)]
    for metric, unit, title in (
        ("cpu_per_1000_requests", "ms", "CPU per 1,000 requests by component"),
        ("memory_pss", "MiB", "Memory (PSS) by component"),
    ):
        components = summary.components(metric)
        rows = []
        for plane in summary.planes:
            found = {c: summary.median(plane, metric, c) for c in components}
            rows.append(plots.BarRow(label=plane, parts={c: v for c, v in found.items() if v is not None}))
        parts.append(
            plots.bars(rows, names=names, unit=unit, title=title)
            if components
            else f"<p class=dim>{title}: not measured.</p>"
        )
    return "".join(parts)


def _attacked(findings: Sequence[Finding]) -> str:
    """Nothing where nobody attacked."""
    rows = matrix.bars(findings)
    if not rows:
        return ""
    title = "Counted, of each component under each plane: the table above says what of"
    plot = plots.bars(rows, names=matrix.PLOTTED, unit="", title=title)
    return f"<h2>What an attacker inside a component gets</h2>{plot}"


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<p class=dim>No findings were recorded.</p>"
    order = {Result.BROKEN: 0, Result.NO_EVIDENCE: 1, Result.HOLDS: 2}
    rows = []
    for f in sorted(findings, key=lambda f: order[f.result]):
        tone = {Result.BROKEN: "bad", Result.NO_EVIDENCE: "weak"}.get(f.result, "")
        shown = ", ".join(map(str, f.packets[:12])) + (
            f" and {len(f.packets) - 12} more" if len(f.packets) > 12 else ""
        )
        evidence = f.evidence + (f" · packets {shown}" if shown else "")
        cells = [f.plane, f.segment, f.statement, f.value, evidence]
        rows.append(
            f"<tr><td class='{tone}'>{_e(f.result.value)}</td>{''.join(f'<td>{_e(c)}</td>' for c in cells)}</tr>"
        )
    head = "".join(f"<th scope=col>{h}</th>" for h in ("result", "plane", "segment", "statement", "seen", "evidence"))
    body = f"<table class=words><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    broken = sum(f.result is Result.BROKEN for f in findings)
    title = f"{len(findings)} findings, {broken} broken"
    return f"<details{' open' if broken else ''}><summary>{title}</summary>{_scroll(body, title)}</details>"


def _fidelity(info: Mapping[str, Any], measurements: Sequence[Measurement], summary: table.Summary) -> str:
    asked = {
        f"{k['a']}--{k['b']}": k["a_to_b"]["delay_ms"] + k["b_to_a"]["delay_ms"]
        for k in info["plan"]["topology"]["links"]
    }
    links = []
    for name in dict.fromkeys(m.component for m in measurements if m.metric == "link_rtt_p50"):
        points = [m.value for m in measurements if m.metric == "link_rtt_p50" and m.component == name]
        links.append(plots.DotRow(label=name, points=points, value=statistics.median(points), asked=asked.get(name)))
    lags = []
    for plane in summary.planes:
        wanted = ("client", "send_lag_p99", plane)
        points = [m.value for m in measurements if (m.component, m.metric, m.plane) == wanted]
        middle = statistics.median(points) if points else None
        lags.append(plots.DotRow(label=plane, points=points, value=middle, series=_colours(summary).index(plane)))
    parts = (
        [plots.dots(links, unit="ms RTT", title="Links: measured RTT of every trial; the tick is what was asked")]
        if links
        else []
    )
    if any(r.points for r in lags):
        parts.append(plots.dots(lags, unit="ms", title="Send lag p99 of every trial, left-out ones too"))
    return "".join(parts) or "<p class=dim>Neither links nor send lag were measured.</p>"


def _limits(info: Mapping[str, Any]) -> str:
    if not info.get("gate"):
        return ""
    rows = "".join(
        f"<tr><th scope=row>{_e(name)}</th><td>{_e(limit)}</td><td>{_e(fidelity.why(name))}</td></tr>"
        for name, limit in info["gate"].items()
    )
    head = "<tr><th scope=col>limit</th><th scope=col>value</th><th scope=col>why</th></tr>"
    table_ = _scroll(f"<table class=words><thead>{head}</thead><tbody>{rows}</tbody></table>", "Limits")
    return f"<details><summary>Limits, fixed before the run</summary>{table_}</details>"


def _causes(measurements: Sequence[Measurement]) -> str:
    """All of what certificates say; the table above has the worst of each plane only."""
    rows = []
    for plane, one in fidelitytable.certified(measurements).items():
        for level, count, cause in one.causes:
            tone = "bad" if level is fidelity.Level.FAIL else "weak"
            cells = f"<td class={tone}>{level.name}</td><td>{count}</td><td>{_e(cause)}</td>"
            rows.append(f"<tr><th scope=row>{_e(plane)}</th>{cells}</tr>")
        rows += [
            f"<tr><th scope=row>{_e(plane)}</th><td>–</td><td></td><td>{_e(text)}</td></tr>" for text in one.missing
        ]
    if not rows:
        return ""
    head = "".join(f"<th scope=col>{h}</th>" for h in ("plane", "level", "trials", "cause"))
    body = f"<table class=words><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    title = f"{len(rows)} causes in the certificates of all trials"
    return f"<details><summary>{title}</summary>{_scroll(body, title)}</details>"


def _left_out(measurements: Sequence[Measurement]) -> str:
    # Reversed: the first row of a trial bears all of its reasons, those of its certificate one each.
    broken = [m for m in measurements if not m.valid]
    reasons = dict.fromkeys((m.trial, m.plane) for m in broken)
    reasons |= {(m.trial, m.plane): m.reason or "no reason given" for m in reversed(broken)}
    if not reasons:
        return "<p>No trial was left out.</p>"
    items = "".join(f"<li>{_e(trial)} ({_e(plane)}): {_e(why)}</li>" for (trial, plane), why in reasons.items())
    return f"<p>Left out of every figure above, all of it:</p><ul>{items}</ul>"


def _facts(info: Mapping[str, Any]) -> str:
    rows = []
    order = " | ".join(" ".join(f"[{p}]" if " " in p else p for p in r) for r in info.get("block_order", []))
    shown = {k: info.get(k) for k in ("runtime", "link_kind", "commit", "lock_sha256", "seed")} | {"block order": order}
    shown |= {
        f"plane {p}": ", ".join(f"{k} {v}" for k, v in about.items()) for p, about in info.get("planes", {}).items()
    }
    shown |= info.get("machine", {}) | {"load": info["plan"]["experiment"]["load"]}
    for key, value in shown.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        rows.append(f"<tr><th scope=row>{_e(key)}</th><td>{_e(value)}</td></tr>")
    plan = _e(json.dumps(info, indent=1, ensure_ascii=False))
    facts = _scroll(f"<table class=words>{''.join(rows)}</table>", "The machine and the plan")
    return f"{facts}<details><summary>run.json</summary><pre>{plan}</pre></details>"


def _e(value: object) -> str:
    return escape(str(value), quote=True)
