"""A lab that stays, found again: by its name, with what was written down about it, and attached to.

What `lab.inspect` prints is written into the lab's folder when it comes up.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from testbed import deploy
from testbed.errors import PeerError, UsageError
from testbed.links.wire import WireLinks, start_in_lab
from testbed.model.experiment import LinkReading
from testbed.model.topology import GilbertElliott, Impairment, Link
from testbed.registry import load
from testbed.runtime import ownership
from testbed.seams import LinkMaker, RunningLab
from testbed.store import as_json

ABOUT = "inspect.json"
CHANGING = "changing"
"""Stands in it while a process changes the lab's plane: who."""


def state_of(name: str) -> ownership.LabState:
    found = ownership.read(ownership.state_root() / name)
    if found is None:
        there = [state.name for state in ownership.labs()]
        raise UsageError(f"no lab is called {name!r}; {known_names(name, there) if there else 'none is up'}")
    return found


def chosen(name: str) -> str:
    """The name given, or the only lab that is up."""
    if name:
        state_of(name)
        return name
    alive = [state.name for state in ownership.labs() if state.alive and state.detached]
    if len(alive) == 1:
        return alive[0]
    raise UsageError(
        f"say which lab with --name: {', '.join(alive)}" if alive else "no lab is up; ./inv lab.up pair makes one"
    )


def chosen_up(name: str) -> str:
    """As `chosen`, and alive."""
    name = chosen(name)
    if not state_of(name).alive:
        raise UsageError(f"lab {name!r} is dead; ./inv lab.gc removes what it left, ./inv lab.up makes it anew")
    return name


def about_of(folder: Path) -> dict:
    """Raises PeerError while its plane changes, and where that was left half done."""
    about = written(folder)
    if (who := about.get(CHANGING)) is None:
        return about
    if ownership.Being(**who).alive:
        raise PeerError(f"lab {folder.name}: process {who['pid']} is changing its plane; again in a moment")
    raise PeerError(
        f"lab {folder.name}: process {who['pid']} died while it changed its plane, so it has half of one; "
        f"./inv lab.up with the topology and a plane makes it whole, ./inv lab.down {folder.name} ends it"
    )


def written(folder: Path) -> dict:
    """What is written down of a lab, be it true just now or not."""
    try:
        return json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError) as error:
        raise PeerError(
            f"lab {folder.name}: {ABOUT} cannot be read ({error}); it is not one of lab.up, or is still coming up"
        ) from error


def programs_of(about: dict) -> Iterator[tuple[str, int]]:
    """(what, pid) of each application and proxy."""
    for workload in about["workloads"]:
        for pid in workload["pids"]:
            yield f"app of {workload['name']}", pid
    for proxy in about["proxies"]:
        if proxy["pid"] is not None:
            yield proxy["name"], proxy["pid"]


def begun(about: dict) -> dict[str, dict | None]:
    """Who its programs are, beyond a number that another process may get once one of them has ended."""
    return {what: asdict(one) if (one := ownership.being(pid)) else None for what, pid in programs_of(about)}


def forget_ended(about: dict) -> list[str]:
    """What has ended since; their numbers are taken out of `about`."""
    born = about["begun"]
    ended = {what: pid for what, pid in programs_of(about) if not (born[what] and ownership.Being(**born[what]).alive)}
    for workload in about["workloads"]:
        workload["pids"] = [pid for pid in workload["pids"] if pid not in ended.values()]
    for proxy in about["proxies"]:
        proxy["pid"] = None if proxy["pid"] in ended.values() else proxy["pid"]
    return list(ended)


def links_of(about: dict) -> list[Link]:
    def impairment(fields: dict) -> Impairment:
        burst = fields.get("gilbert_elliott")
        return Impairment(**{**fields, "gilbert_elliott": GilbertElliott(**burst) if burst else None})

    sides = ("a_to_b", "b_to_a")
    return [Link(**{**row, **{side: impairment(row[side]) for side in sides}}) for row in about["links"]]


def attach(name: str) -> tuple[LinkMaker, RunningLab]:
    about = written(ownership.state_root() / name)
    attached = load("runtime", about["runtime"])().attach(name)
    made = load("link", about["link_kind"])
    maker: LinkMaker = made(start=start_in_lab) if made is WireLinks else made()  # type: ignore[operator]
    return maker, attached


def link_row(link: Link, reading: LinkReading) -> dict:
    return {
        "a": link.a,
        "b": link.b,
        "asked": {"a_to_b": as_json(link.a_to_b), "b_to_a": as_json(link.b_to_a), "rtt_ms": link.rtt_ms},
        "measured": {
            "rtt_ms": _measured(reading.rtt_p50_ms),
            "rtt_p90_ms": _measured(reading.rtt_p90_ms),
            "loss": _measured(reading.loss),
        },
    }


def _measured(value: float) -> float | None:
    """What was not measured (no probe came back) is null: JSON has no word for NaN."""
    return None if math.isnan(value) else value


def known_names(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name: the closest one, and all."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(sorted(known))}"


def describe(deployment: deploy.Deployment) -> dict:
    """What `lab.inspect --json` prints, but for the links' measured values."""
    running, topology = deployment.lab, deployment.lab.topology
    netns = {name: sandbox.netns for name, sandbox in running.running.sandboxes.items()}
    container = {name: sandbox.container for name, sandbox in running.running.sandboxes.items()}
    pids = {name: process.pid for name, process in running.apps.items()}
    return {
        "lab": running.name,
        "topology": topology.name,
        "runtime": running.running.runtime,
        "link_kind": running.link_kind,
        "plane": deployment.placement.plane,
        "nodes": [
            {
                "name": n.name,
                "zone": n.zone,
                "netns": netns[n.name],
                "container": container[n.name],
                "address": n.address,
            }
            for n in topology.nodes
        ],
        "workloads": [
            {
                "name": w.name,
                "namespace": w.namespace,
                "service_account": w.service_account,
                "node": w.node,
                "netns": netns[w.name],
                "container": container[w.name],
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
