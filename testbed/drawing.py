"""The topology as inline SVG, a padlock on every segment: closed or open as packets proved, `?` where none did.

Pure. A lock tells what was *seen*, never what a plane promises. Facts: findings of `verify.judge` name a link as
`link a--b (…)` and a workload's own wire as `veth of name (…)`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from testbed.model.experiment import Finding, Result
from testbed.table import digits
from testbed.typeset import clean

_NODE_WIDTH, _ROW, _GAP = 200, 26, 190


def lock(findings: Iterable[Finding]) -> str:
    """`closed`, `open` or `unknown` for the findings of one segment. One proof of cleartext outweighs all else."""
    closed = False
    for f in findings:
        check = f.id.rpartition("/")[2] if "/" in f.id else f.id
        if (check == "hidden" and f.result is Result.BROKEN) or (check == "readable" and f.result is Result.HOLDS):
            return "open"
        if check == "packets.encryption" and f.result is Result.HOLDS:
            if f.value.startswith("clear"):
                return "open"
            closed |= f.value.startswith("TLS")
        closed |= check in ("hidden", "tls") and f.result is Result.HOLDS
    return "closed" if closed else "unknown"


def on_segment(findings: Iterable[Finding], *, link: str = "", workload: str = "") -> list[Finding]:
    wanted = {link, f"link {link}"} if link else {f"veth of {workload}"}
    return [f for f in findings if re.sub(r" \(.*\)$", "", f.segment) in wanted]


def draw(
    topology: Mapping[str, Any], findings: Sequence[Finding], *, title: str, proxies: Sequence[Mapping[str, Any]] = ()
) -> str:
    """`topology` and `proxies` as in `run.json`. Zones are columns, nodes stand in them, workloads in nodes.

    A sidecar is a word in its workload's box, a ztunnel one beside its node's name; a waypoint has a box of its own.
    """
    zones: dict[str, list[str]] = {}
    for node in topology["nodes"]:
        zones.setdefault(node["zone"], []).append(node["name"])
    inside = {
        n["name"]: [w["name"] for w in topology["workloads"] if w["node"] == n["name"]] for n in topology["nodes"]
    }
    known = {*inside, *(name for names in inside.values() for name in names)}
    own = {str(p["sandbox"]) for p in proxies} - known
    beside: dict[str, list[str]] = {}
    for proxy in proxies:
        if proxy["sandbox"] in own:
            inside[proxy["node"]].append(proxy["sandbox"])
        else:
            beside.setdefault(proxy["sandbox"], []).append(proxy["role"])
    boxes: dict[str, tuple[float, float, float]] = {}
    out, height = [], 0.0
    for column, nodes in enumerate(zones.values()):
        y = 46.0
        for name in nodes:
            tall = 34 + _ROW * len(inside[name])
            boxes[name] = (24 + column * (_NODE_WIDTH + _GAP), y, tall)
            y += tall + 74
        height = max(height, y - 50)
    width = 24 * 2 + len(zones) * _NODE_WIDTH + (len(zones) - 1) * _GAP + (60 if len(zones) == 1 else 0)
    for column, zone in enumerate(zones):
        x = 8 + column * (_NODE_WIDTH + _GAP)
        size = f'width="{_NODE_WIDTH + 32}" height="{height:.0f}"'
        out.append(f'<rect class="zone" x="{x}" y="6" {size} rx="10"/>' + _text(x + 14, 26, zone, "start", "dim"))
    labels = []
    for link in topology["links"]:
        if link["a"] in boxes and link["b"] in boxes:
            line, label = _link(boxes[link["a"]], boxes[link["b"]], link, findings)
            out.append(line)
            labels.append(label)
    for name, (x, y, tall) in boxes.items():
        out.append(f'<rect class="node" x="{x}" y="{y}" width="{_NODE_WIDTH}" height="{tall}" rx="6"/>')
        out.append(_text(x + 10, y + 20, name, "start", "strong"))
        out.append(_text(x + _NODE_WIDTH - 12, y + 20, ", ".join(beside.get(name, ())), "end", "proxy"))
        for i, workload in enumerate(inside[name]):
            top = y + 30 + i * _ROW
            kind = "workload own" if workload in own else "workload"
            out.append(f'<rect class="{kind}" x="{x + 8}" y="{top}" width="{_NODE_WIDTH - 16}" height="22" rx="4"/>')
            out.append(_text(x + 16, top + 15, workload, "start", "proxy" if workload in own else ""))
            out.append(_text(x + _NODE_WIDTH - 36, top + 15, ", ".join(beside.get(workload, ())), "end", "proxy"))
            seen = on_segment(findings, workload=workload)
            if seen:
                out.append(_padlock(x + _NODE_WIDTH - 22, top + 11, lock(seen)))
    label = escape(clean(title))
    # As large as it is drawn: a single zone would else be blown up to the width of three.
    size = f'style="max-width:{width}px;min-width:min(34rem,{width}px)"'
    start = f'<svg class="topology" {size} viewBox="0 0 {width} {height + 14:.0f}" role="img" aria-label="{label}">'
    return f"<figure><figcaption>{label}</figcaption>{start}{''.join(out + labels)}</svg></figure>"


def _link(
    a: tuple[float, float, float], b: tuple[float, float, float], link: Mapping[str, Any], findings: Sequence[Finding]
) -> tuple[str, str]:
    if a[0] > b[0] or (a[0] == b[0] and a[1] > b[1]):
        a, b = b, a
    if a[0] == b[0]:  # one above the other
        ends = (a[0] + _NODE_WIDTH / 2, a[1] + a[2], b[0] + _NODE_WIDTH / 2, b[1])
    else:
        ends = (a[0] + _NODE_WIDTH, a[1] + a[2] / 2, b[0], b[1] + b[2] / 2)
    x1, y1, x2, y2 = ends
    # Off the middle where several lines of a gap would cross there
    share = 0.5 if x1 == x2 or math.isclose(y1, y2) else 0.38
    x, y = x1 + (x2 - x1) * share, y1 + (y2 - y1) * share
    state = lock(on_segment(findings, link=f"{link['a']}--{link['b']}"))
    line = f'<line class="link {state}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
    words = _impairment(link)
    size = 6.8 * len(words) + 36
    back = f'<rect class="chip" x="{x - size / 2:.1f}" y="{y - 12:.1f}" width="{size:.1f}" height="24" rx="12"/>'
    return line, back + _padlock(x - size / 2 + 14, y, state) + _text(x - size / 2 + 26, y + 4, words, "start")


def _impairment(link: Mapping[str, Any]) -> str:
    there, back = link["a_to_b"], link["b_to_a"]
    words = [
        f"RTT {digits(there['delay_ms'] + back['delay_ms'])} ms" if there["delay_ms"] + back["delay_ms"] else "plain"
    ]
    loss = max(there["loss"], back["loss"])
    words += [f"loss {loss:.1%}"] if loss else []
    return ", ".join(words)


def _padlock(x: float, y: float, state: str) -> str:
    told = {"closed": "encrypted, proved from packets", "open": "cleartext, proved from packets"}
    tip = f"<title>{told.get(state, 'no evidence from packets')}</title>"
    if state == "unknown":
        return f'<g class="lock unknown">{tip}{_text(x, y + 5, "?", "middle", "strong")}</g>'
    shift = 5 if state == "open" else 0
    shackle = f"M{x - 3.5 + shift:.1f} {y - 1:.1f} v-3 a3.5 3.5 0 0 1 7 0 v{3 if state == 'closed' else 1}"
    body = f'<rect x="{x - 5.5:.1f}" y="{y - 1:.1f}" width="11" height="8.5" rx="1.5"/>'
    return f'<g class="lock {state}">{tip}<path d="{shackle}"/>{body}</g>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(clean(text))}</text>'
