"""The lab verbs: labs that outlive the command that made them.

How one is found again is in `livelab`, its links are in `livelinks`, its captures in `captures`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from testbed import (
    captures,
    declared,
    deploy,
    honoured,
    interrupts,
    lab,
    livecertificates,
    livelinks,
    liveplane,
    planespec,
    topofile,
)
from testbed.errors import PeerError, UsageError
from testbed.links.gauge import PROBES, measure
from testbed.links.probe import choose
from testbed.links.wire import WireLinks, start_in_lab
from testbed.livelab import (
    ABOUT,
    CHANGING,
    about_of,
    attach,
    begun,
    chosen,
    chosen_up,
    describe,
    forget_ended,
    known_names,
    link_row,
    links_of,
    state_of,
    written,
)
from testbed.model.placement import Placement
from testbed.model.topology import Topology
from testbed.registry import load
from testbed.runtime import enter, ownership
from testbed.store import as_json, write_whole

GLANCE = 20
"""Probes a link where the lab is only looked at again: enough for a delay that is off, and done in a third of a second.
"""


def up(
    topology_name: str,
    *,
    plane: str,
    runtime: str,
    link: str,
    name: str,
    keylog: bool = False,
    dry_run: bool = False,
    json_text: bool = False,
) -> int:
    """Idempotent: a lab of that name that was asked for in the same words, and a file of the same content, is shown as
    it is. One that differs by its plane or its links' impairments is changed in place, and shown; any other is refused,
    with what differs.

    Until all of it is up the lab ends with this process, so that a kill at any point leaves no half-made lab.
    """
    topology = topology_of(topology_name)
    name = name or topology.name
    placement = planespec.place(plane, topology)
    made_runtime = load("runtime", planespec.runtime_of(plane) or ("netns" if runtime == "auto" else runtime))()
    root = ownership.state_root()
    wanted = declared.declaration(topology, plane=plane, runtime=runtime, link=link, keylog=keylog)

    def shown_as_it_is() -> int | None:
        if _settled(root / name) is None:
            return None
        with ownership.turn(root / name):  # not two at once
            if not _changed(root / name, topology, placement, wanted, dry_run=dry_run):
                print(f"lab {name} is up already ({plane} on {topology.name})", file=sys.stderr)
        if dry_run:
            return 0
        about = about_of(root / name)
        if json_text:
            return inspect(name, True, probes=GLANCE)
        codes = _programs(name, about), _certificates(root / name, about)[1]
        return max(livelinks.show(name, False, probes=GLANCE), *codes)

    if (code := shown_as_it_is()) is not None:
        return code
    links = choose(link)
    _tell_not_honoured(topology, plane)
    if dry_run:
        print(
            f"would bring up lab {name}: {len(topology.nodes)} nodes, {len(topology.workloads)} workloads, "
            f"{len(topology.links)} links by {links.name}, plane {plane} with {len(placement.proxies)} proxies"
        )
        return 0
    if isinstance(links, WireLinks):
        links = WireLinks(start=start_in_lab)
    try:
        running = lab.start(
            topology,
            runtime=made_runtime,
            links=links,
            name=name,
            logs=root / name / "logs",
            extra=deploy.extra_sandboxes(placement),
            progress=lambda line: print(line, file=sys.stderr),
        )
    except UsageError:
        if (code := shown_as_it_is()) is None:  # another process was quicker by a moment
            raise
        return code
    try:
        with ExitStack() as stack:
            if count := len(placement.proxies):
                print(f"plane {plane}: {count} {'proxy' if count == 1 else 'proxies'}", file=sys.stderr)
            deployment = deploy.start(running, placement, stack=stack, keylog=keylog, renewed=True)
            about = {
                **describe(deployment),
                "keylog": keylog and bool(placement.proxies),
                "certificates": livecertificates.begun(deployment),
                "declared": wanted | {"runtime": made_runtime.name, "link kind": links.name},
            }
            about["begun"] = begun(about)
            write_whole(running.folder / ABOUT, json.dumps(about).encode())
        readings = measure(running.running, running.links)
        running.running.detach()
    except BaseException:
        running.running.down()
        raise
    if json_text:
        about["links"] = [link_row(one.link, reading) for one, reading in zip(running.links, readings, strict=True)]
        _print(about, _certificates(running.folder, about)[0])
    else:
        livelinks.print_readings(readings)
    where = topology.workloads[0].name if topology.workloads else topology.nodes[0].name
    print(
        f"\nlab {name} is up with plane {plane}: ./inv lab.exec {where} -- …, ./inv lab.inspect, ./inv lab.down",
        file=sys.stderr,
    )
    if about["keylog"]:
        print("its proxies log their TLS secrets: for labs only, captures of it can be read", file=sys.stderr)
    return livelinks.verdict(name, running.links, readings)


def _changed(
    folder: Path, topology: Topology, placement: Placement, wanted: Mapping[str, Any], *, dry_run: bool
) -> bool:
    """Whether the lab was another until now. Raises UsageError where only a new one will do."""
    about = written(folder)
    lines = declared.differences(about["declared"], wanted)
    half = CHANGING in about
    if not lines and not half:
        return False
    needed = declared.change(about["declared"], wanted)
    if needed.rest:
        raise UsageError(
            f"a lab called {folder.name!r} is up and differs from what was asked for (it → now asked):\n"
            f"{declared.told(lines)}\n"
            f"./inv lab.down --name {folder.name} first, or another --name"
        )
    told = declared.told(lines) if lines else "  its plane, which was left half done"
    if dry_run:
        print(f"would change lab {folder.name} in place:\n{told}")
        return True
    print(f"lab {folder.name} is up and is changed in place:\n{told}", file=sys.stderr)
    if needed.plane:
        _tell_not_honoured(topology, wanted["plane"])
    liveplane.become(
        folder, about, topology, placement, change=replace(needed, plane=needed.plane or half), wanted=wanted
    )
    return True


def _tell_not_honoured(topology: Topology, plane: str) -> None:
    for line in honoured.told(topology.policies, plane):
        print(f"not honoured under {plane}: {line}", file=sys.stderr)


def _settled(folder: Path, limit_s: float = 60.0) -> ownership.LabState | None:
    """The lab of this folder once it is all up, waiting for another process that brings it up; None where none is."""
    told = False
    deadline = time.monotonic() + limit_s
    while (state := ownership.read(folder)) is not None and state.alive:
        if state.detached:
            return state
        if time.monotonic() > deadline:
            raise PeerError(f"lab {folder.name}: process {state.owner.pid} has not brought it up within {limit_s:g} s")
        if not told:
            print(f"lab {folder.name}: process {state.owner.pid} is bringing it up, waiting", file=sys.stderr)
            told = True
        time.sleep(0.1)
    return None


def down(name: str, *, dry_run: bool = False) -> int:
    """Captures of the lab are ended first, so that their files are whole."""
    name = chosen(name)
    state = state_of(name)
    if state.alive and not state.detached:
        raise UsageError(
            f"lab {name} belongs to process {state.owner.pid}, which is at work with it; it takes it down itself"
        )
    running = captures.of_lab(ownership.state_root() / name)
    if dry_run:
        for capture in running:
            print(f"would stop the capture into {capture.out}")
        print(f"would take down lab {name}: {len(state.sandboxes)} sandboxes and all in them")
        return 0
    for row in captures.end(running):
        print(captures.told(row), file=sys.stderr)
    ownership.bury(state, ownership.state_root())
    print(f"lab {name} is down", file=sys.stderr)
    return 0


def list_all(json_text: bool) -> int:
    root = ownership.state_root()
    rows = []
    for state in ownership.labs(root):
        about = written(root / state.name) if (root / state.name / ABOUT).exists() else {}
        rows.append(
            {
                "lab": state.name,
                "topology": about.get("topology", state.topology),
                "plane": about.get("plane", "?"),
                "state": "up" if state.alive else "dead (lab.gc removes it)",
                "detached": state.detached,
            }
        )
    if json_text:
        print(json.dumps(rows, indent=1))
    elif not rows:
        print("no labs", file=sys.stderr)
    else:
        for row in rows:
            print(f"{row['lab']:<24} {row['topology']:<16} {row['plane']:<12} {row['state']}")
    return 0


def _certificates(folder: Path, about: dict) -> tuple[livecertificates.Standing | None, int]:
    """How they stand, and 3 where something is wrong with them, which is said on stderr; else 0."""
    standing = livecertificates.standing(folder, about["certificates"])
    warning = standing.warning(time.time(), folder.name) if standing else ""
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    return standing, 3 if warning else 0


def _programs(name: str, about: dict) -> int:
    """4 where one has ended, which is said on stderr; else 0. `about` is left without their numbers."""
    if not (ended := forget_ended(about)):
        return 0
    print(
        f"dead: {', '.join(ended)} of lab {name} ended; its log says why; ./inv lab.down {name}, then lab.up again",
        file=sys.stderr,
    )
    return 4


def _print(about: dict, standing: livecertificates.Standing | None) -> None:
    """What programs read: all that was written down but what is only there to be compared with."""
    told = {key: value for key, value in about.items() if key not in ("declared", "begun")}
    print(json.dumps({**told, "certificates": standing.row() if standing else None}, indent=1))


def inspect(name: str, json_text: bool, *, probes: int = PROBES) -> int:
    """3 where the lab's certificates are no longer renewed, 4 where a program of it has ended."""
    name = chosen_up(name)
    folder = ownership.state_root() / name
    about = about_of(folder)
    standing, code = _certificates(folder, about)
    code = max(code, _programs(name, about))
    maker, attached = attach(name)
    links = links_of(about)
    live = maker.attach(attached, links)
    readings = measure(attached, live, probes=probes)
    about["links"] = [link_row(link, reading) for link, reading in zip(links, readings, strict=True)]
    if json_text:
        _print(about, standing)
        return max(code, livelinks.verdict(name, live, readings))
    print(as_text(about))
    if standing is not None:
        print(f"  certificates {standing.text()}")
    livelinks.print_readings(readings)
    return max(code, livelinks.verdict(name, live, readings))


def as_text(about: Mapping[str, Any]) -> str:
    """Nodes, each with its workloads, and every proxy below whatever has its network; services last."""
    lines = [
        f"lab {about['lab']}: {about['topology']} with plane {about['plane']} on {about['runtime']}, "
        f"links by {about['link_kind']}"
    ]
    at_home = {entry["netns"] for entry in (*about["nodes"], *about["workloads"])}

    def proxies(netns: str, indent: str) -> list[str]:
        mine = [proxy for proxy in about["proxies"] if proxy["netns"] == netns]
        return [f"{indent}{p['role']} {_pid(p['pid'])} for {', '.join(p['for'])}" for p in mine]

    for node in about["nodes"]:
        lines += [f"  node {node['name']} ({node['zone']}) {node['address']}", *proxies(node["netns"], "    ")]
        for workload in (w for w in about["workloads"] if w["node"] == node["name"]):
            pids = f" pid {workload['pids'][0]}" if workload["pids"] else ""
            account = f"{workload['namespace']}/{workload['service_account']}"
            lines.append(f"    {workload['name']:<16} {workload['address']:<14} {account}{pids}")
            lines += proxies(workload["netns"], "      ")
    for netns in dict.fromkeys(proxy["netns"] for proxy in about["proxies"]):
        lines += proxies(netns, "  ") if netns not in at_home else []  # a waypoint has a place of its own
    for service in about["services"]:
        ports = ", ".join(f"{p['port']}→{p['target_port']}" for p in service["ports"])
        lines.append(f"  service {service['name']} {service['address']} {ports}")
    return "\n".join(lines)


def _pid(pid: int | None) -> str:
    return "has ended" if pid is None else f"pid {pid}"


def execute(name: str, workload: str, words: Sequence[str]) -> int:
    """Becomes the program, as the caller, in the sandbox's network only: signals and its exit code are its own."""
    name = chosen_up(name)
    about = about_of(ownership.state_root() / name)
    netns = {entry["name"]: entry["netns"] for entry in (*about["nodes"], *about["workloads"])}
    if workload not in netns:
        raise UsageError(f"lab {name} has no workload or node {workload!r}; {known_names(workload, netns)}")
    sys.stdout.flush()
    interrupts.release()
    enter.move_to(netns[workload])
    try:
        os.execvp(words[0], list(words))
    except FileNotFoundError as error:
        raise UsageError(f"{words[0]}: no such program on this machine") from error


def graph(topology_name: str, json_text: bool = False) -> int:
    topology = topology_of(topology_name)
    if json_text:
        print(json.dumps(as_json(topology), indent=1))
        return 0
    for zone in dict.fromkeys(node.zone for node in topology.nodes):
        print(f"zone {zone}")
        for node in topology.nodes:
            if node.zone == zone:
                print(f"  node {node.name} {node.network}")
                for workload in topology.on_node(node.name):
                    print(
                        f"    {workload.name:<16} {workload.app.kind:<10} "
                        f"{workload.namespace}/{workload.service_account}"
                    )
    for link in topology.links:
        print(f"link {link.a} ── {link.b}  RTT {link.rtt_ms:g} ms")
    for service in topology.services:
        print(f"service {service.name} {service.address} → {', '.join(service.endpoints)}")
    return 0


def topology_of(name: str) -> Topology:
    return topofile.load(Path(name) if name.endswith((".yml", ".yaml")) else topofile.find(name))
