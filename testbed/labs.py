"""The lab verbs: labs that outlive the command that made them.

What `lab.inspect` prints is written into the lab's folder when it comes up, as contracts.md shapes it; links are
measured anew each time they are shown.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from testbed import captures, deploy, interrupts, lab, sweep, topofile
from testbed.errors import MachineError, PeerError, UsageError
from testbed.links.gauge import measure
from testbed.links.netem import NetemLinks
from testbed.links.probe import choose
from testbed.links.wire import WireLinks, start_in_lab
from testbed.model.experiment import LinkReading
from testbed.model.topology import GilbertElliott, Impairment, Link, Topology
from testbed.observe.capture import Point
from testbed.registry import load
from testbed.runtime import enter, ownership
from testbed.seams import LinkMaker
from testbed.store import as_json, write_whole
from testbed.sweep import results_root

ABOUT = "inspect.json"


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
    """Idempotent: a lab of that name with that plane and topology is shown as it is.

    Until all of it is up the lab ends with this process, so that a kill at any point leaves no half-made lab.
    """
    topology = _topology(topology_name)
    name = name or topology.name
    placement = load("plane", plane).place(topology, {})
    made_runtime = load("runtime", "netns" if runtime == "auto" else runtime)()
    root = ownership.state_root()

    def shown_as_it_is() -> int | None:
        if _settled(root / name) is None:
            return None
        about = _about(root / name)
        if (about["plane"], about["topology"]) != (plane, topology.name):
            raise UsageError(
                f"a lab called {name!r} is up with {about['plane']} on {about['topology']}; "
                f"./inv lab.down --name {name}, or another --name"
            )
        print(f"lab {name} is up already ({plane} on {topology.name})", file=sys.stderr)
        return 0 if dry_run else inspect(name, True) if json_text else link_show(name, False)

    if (code := shown_as_it_is()) is not None:
        return code
    links = choose(link)
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
            extra=sweep.extra_sandboxes(placement),
            progress=lambda line: print(line, file=sys.stderr),
        )
    except UsageError:
        if (code := shown_as_it_is()) is None:  # another process was quicker by a moment
            raise
        return code
    try:
        with ExitStack() as stack:
            deployment = deploy.start(running, placement, stack=stack, keylog=keylog)
            about = {**describe(deployment), "keylog": keylog and bool(placement.proxies)}
            write_whole(running.folder / ABOUT, json.dumps(about).encode())
        readings = measure(running.running, running.links)
        running.running.detach()
    except BaseException:
        running.running.down()
        raise
    if json_text:
        about["links"] = [_link_row(one.link, reading) for one, reading in zip(running.links, readings, strict=True)]
        print(json.dumps(about, indent=1))
    else:
        print_readings(readings)
    print(f"\nlab {name} is up: ./inv lab.exec client -- …, ./inv lab.inspect, ./inv lab.down", file=sys.stderr)
    if about["keylog"]:
        print("its proxies log their TLS secrets: for labs only, captures of it can be read", file=sys.stderr)
    return 3 if any(not reading.within_tolerance for reading in readings) else 0


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


def describe(deployment: deploy.Deployment) -> dict:
    """What contracts.md promises of `lab.inspect --json`, but for the links' measured values."""
    running, topology = deployment.lab, deployment.lab.topology
    netns = {name: sandbox.netns for name, sandbox in running.running.sandboxes.items()}
    pids = {name: process.pid for name, process in running.apps.items()}
    return {
        "lab": running.name,
        "topology": topology.name,
        "runtime": "netns",
        "link_kind": running.link_kind,
        "plane": deployment.placement.plane,
        "nodes": [
            {"name": n.name, "zone": n.zone, "netns": netns[n.name], "address": n.address} for n in topology.nodes
        ],
        "workloads": [
            {
                "name": w.name,
                "namespace": w.namespace,
                "service_account": w.service_account,
                "node": w.node,
                "netns": netns[w.name],
                "address": w.address,
                "pids": [pids[w.name]] if w.name in pids else [],
            }
            for w in topology.workloads
        ],
        "services": [
            {
                "name": s.name,
                "address": s.address,
                "ports": [{"port": p.port, "target_port": p.target_port} for p in s.ports],
                "waypoint": s.waypoint.name if s.waypoint else None,
            }
            for s in topology.services
        ],
        "proxies": [
            {
                "name": p.name,
                "role": p.role,
                "for": list(p.serves),
                "pid": deployment.proxies[p.name].pid,
                "netns": netns[p.sandbox],
                "identities": [str(identity) for identity in p.identities],
            }
            for p in deployment.placement.proxies
        ],
        "links": [as_json(link) for link in topology.links],
    }


def down(name: str, *, dry_run: bool = False) -> int:
    """Captures of the lab are ended first, so that their files are whole."""
    name = _only(name)
    state = _state(name)
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
        about = _about(root / state.name) if (root / state.name / ABOUT).exists() else {}
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


def inspect(name: str, json_text: bool) -> int:
    name = _up(name)
    about = _about(ownership.state_root() / name)
    maker, attached = _attach(name)
    links = _links(about)
    readings = measure(attached, maker.attach(attached, links))
    about["links"] = [_link_row(link, reading) for link, reading in zip(links, readings, strict=True)]
    if json_text:
        print(json.dumps(about, indent=1))
        return 0
    print(f"lab {about['lab']}: {about['topology']} with plane {about['plane']}, links by {about['link_kind']}")
    for node in about["nodes"]:
        print(f"  node {node['name']} ({node['zone']}) {node['address']}")
        for proxy in about["proxies"]:
            if proxy["netns"] == node["netns"]:
                print(f"    {proxy['role']} pid {proxy['pid']} for {', '.join(proxy['for'])}")
        for workload in about["workloads"]:
            if workload["node"] == node["name"]:
                pids = f" pid {workload['pids'][0]}" if workload["pids"] else ""
                print(
                    f"    {workload['name']:<16} {workload['address']:<14} "
                    f"{workload['namespace']}/{workload['service_account']}{pids}"
                )
    for service in about["services"]:
        ports = ", ".join(f"{p['port']}→{p['target_port']}" for p in service["ports"])
        print(f"  service {service['name']} {service['address']} {ports}")
    print_readings(readings)
    return 0


def execute(name: str, workload: str, words: Sequence[str]) -> int:
    """Becomes the program, as the caller, in the sandbox's network only: signals and its exit code are its own."""
    name = _up(name)
    about = _about(ownership.state_root() / name)
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


def known_names(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name: the closest one, and all."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(sorted(known))}"


def graph(topology_name: str, json_text: bool = False) -> int:
    topology = _topology(topology_name)
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


def link_show(name: str, json_text: bool) -> int:
    name = _up(name)
    about = _about(ownership.state_root() / name)
    maker, attached = _attach(name)
    links = _links(about)
    readings = measure(attached, maker.attach(attached, links))
    if json_text:
        print(json.dumps([_link_row(link, reading) for link, reading in zip(links, readings, strict=True)], indent=1))
    else:
        print_readings(readings)
    return 0


def link_set(
    name: str, a: str, b: str, fields: dict[str, float], *, dry_run: bool = False, json_text: bool = False
) -> int:
    """The direction a→b. The other one keeps what it has."""
    if not fields:
        raise UsageError("nothing to set; name one of --delay-ms, --jitter-ms, --loss, --rate-mbit")
    limits = {"delay_ms": 10_000.0, "jitter_ms": 10_000.0, "loss": 1.0, "rate_mbit": 100_000.0}
    for key, value in fields.items():
        if not 0 <= value <= limits[key]:
            raise UsageError(f"--{key.replace('_', '-')} {value:g} is outside 0..{limits[key]:g}")
    name = _up(name)
    folder = ownership.state_root() / name
    about = _about(folder)
    links = _links(about)
    found = next((k for k in links if {k.a, k.b} == {a, b}), None)
    if found is None:
        raise UsageError(f"lab {name} has no link {a}–{b}; it has {', '.join(k.name for k in links)}")
    side = "a_to_b" if found.a == a else "b_to_a"
    changed = dataclasses.replace(getattr(found, side), **fields)
    if changed.loss and changed.gilbert_elliott:
        raise UsageError(f"link {found.name} has bursty loss in that direction, which excludes --loss")
    if dry_run:
        now = getattr(found, side)
        told = ", ".join(f"{key} {getattr(now, key):g} → {value:g}" for key, value in fields.items())
        print(f"would set {a} → {b} of lab {name}: {told}")
        return 0
    maker, attached = _attach(name)
    live = next(x for x in maker.attach(attached, links) if x.link.name == found.name)
    live.set(**{side: changed})
    links = [dataclasses.replace(k, **{side: changed}) if k is found else k for k in links]
    about["links"] = [as_json(k) for k in links]
    write_whole(folder / ABOUT, json.dumps(about).encode())
    (link,) = [k for k in links if k.name == found.name]
    readings = measure(attached, maker.attach(attached, [link]))
    if json_text:
        print(json.dumps(_link_row(link, readings[0]), indent=1))
    else:
        print_readings(readings)
    return 0 if readings[0].within_tolerance else 3


def print_readings(readings: list[LinkReading]) -> None:
    """Measured beside asked."""
    print(f"{'link':<28} {'asked RTT ms':>12} {'measured p50':>12} {'p90':>8} {'asked loss':>10} {'measured':>8}")
    for r in readings:
        mark = "" if r.within_tolerance else "  OFF"
        print(
            f"{r.link:<28} {r.asked_rtt_ms:>12.3f} {r.rtt_p50_ms:>12.3f} "
            f"{r.rtt_p90_ms:>8.3f} {r.asked_loss:>10.3f} {r.loss:>8.3f}{mark}"
        )


def _topology(name: str) -> Topology:
    return topofile.load(Path(name) if name.endswith((".yml", ".yaml")) else topofile.find(name))


def _state(name: str) -> ownership.LabState:
    found = ownership.read(ownership.state_root() / name)
    if found is None:
        there = [state.name for state in ownership.labs()]
        raise UsageError(f"no lab is called {name!r}; {known_names(name, there) if there else 'none is up'}")
    return found


def _only(name: str) -> str:
    """The name given, or the only lab that is up."""
    if name:
        _state(name)
        return name
    alive = [state.name for state in ownership.labs() if state.alive and state.detached]
    if len(alive) == 1:
        return alive[0]
    raise UsageError(
        f"say which lab with --name: {', '.join(alive)}" if alive else "no lab is up; ./inv lab.up pair makes one"
    )


def _up(name: str) -> str:
    """As `_only`, and alive."""
    name = _only(name)
    if not _state(name).alive:
        raise UsageError(f"lab {name!r} is dead; ./inv lab.gc removes what it left, ./inv lab.up makes it anew")
    return name


def _about(folder: Path) -> dict:
    try:
        return json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError) as error:
        raise PeerError(
            f"lab {folder.name}: {ABOUT} cannot be read ({error}); it is not one of lab.up, or is still coming up"
        ) from error


def _links(about: dict) -> list[Link]:
    def impairment(fields: dict) -> Impairment:
        burst = fields.get("gilbert_elliott")
        return Impairment(**{**fields, "gilbert_elliott": GilbertElliott(**burst) if burst else None})

    sides = ("a_to_b", "b_to_a")
    return [Link(**{**row, **{side: impairment(row[side]) for side in sides}}) for row in about["links"]]


def _attach(name: str) -> tuple[LinkMaker, object]:
    about = _about(ownership.state_root() / name)
    attached = load("runtime", about["runtime"])().attach(name)
    maker: LinkMaker = WireLinks(start=start_in_lab) if about["link_kind"] == "wire" else NetemLinks()
    return maker, attached


def _link_row(link: Link, reading: LinkReading) -> dict:
    return {
        "a": link.a,
        "b": link.b,
        "asked": {"a_to_b": as_json(link.a_to_b), "b_to_a": as_json(link.b_to_a), "rtt_ms": link.rtt_ms},
        "measured": {"rtt_ms": reading.rtt_p50_ms, "rtt_p90_ms": reading.rtt_p90_ms, "loss": reading.loss},
    }


def capture_start(
    name: str,
    where: Sequence[str],
    *,
    out: str = "",
    snaplen: int = 0,
    limit_mib: int = 512,
    dry_run: bool = False,
    json_text: bool = False,
) -> int:
    """Packets of a live lab into one pcapng, until `capture.stop` or the lab's end."""
    name = _up(name)
    state, folder = _state(name), ownership.state_root() / name
    about = _about(folder)
    netns = {node["name"]: node["netns"] for node in about["nodes"]}
    found = captures.places(
        where,
        links=_links(about),
        workloads={w["name"]: w["node"] for w in about["workloads"]},
        nodes=netns,
        unknown=known_names,
    )
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
    file = Path(out or results_root() / "captures" / name).absolute() / f"{stamp}Z.pcapng"
    told = [f"{sandbox}:{device or '*'}" for sandbox, device in found]
    if dry_run:
        print(f"would capture at {', '.join(told)} into {file}")
        return 0
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{file.parent}: {error.strerror}; check rights and space, or give --out") from error
    assert state.keeper is not None
    captures.start(
        folder,
        [Point(sandbox=sandbox, netns=netns[sandbox], device=device) for sandbox, device in found],
        file,
        keeper=state.keeper,
        key_logs=[folder / "proxies" / proxy["name"] / "keys.log" for proxy in about["proxies"]],
        snaplen=snaplen,
        limit_bytes=limit_mib << 20,
    )
    print(json.dumps({"lab": name, "file": str(file), "points": told}, indent=1) if json_text else file)
    print(f"capturing at {len(found)} points; ./inv capture.stop {name}", file=sys.stderr)
    return 0


def capture_stop(name: str, *, dry_run: bool = False, json_text: bool = False) -> int:
    name = _only(name)
    _state(name)
    running = captures.of_lab(ownership.state_root() / name)
    if not running:
        raise UsageError(f"no capture of lab {name} is running; ./inv capture.start {name} begins one")
    if dry_run:
        for capture in running:
            print(f"would stop the capture into {capture.out}")
        return 0
    rows = captures.end(running)
    if json_text:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print(captures.told(row))
    codes = [row["exit_code"] for row in rows if "exit_code" in row]
    return max(codes) if codes else 3 if any(row["drops"] for row in rows) else 0
