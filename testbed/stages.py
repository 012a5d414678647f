"""What leads from one placement to another on a lab that runs: what ends, begins, is told anew, is captured. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from testbed import planespec, policyfile
from testbed.errors import UsageError
from testbed.model.event import Kind, Stage
from testbed.model.experiment import Cell
from testbed.model.placement import Capture, Placement, Proxy
from testbed.model.topology import Topology

CRASH_HEADER = "x-meshbed-crash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Each part in the order in which `events` carries them out."""

    restarted: tuple[str, ...] = ()
    """Workloads in whose own sandbox a proxy comes or goes: their application is restarted."""
    started: tuple[Proxy, ...] = ()
    entered: tuple[tuple[str, str], ...] = ()
    """(proxy, workload) that joins a node agent's proxy."""
    captured: tuple[Capture, ...] = ()
    told: tuple[Proxy, ...] = ()
    """Proxies that stay and whose view is another, as they are to be."""
    released: tuple[Capture, ...] = ()
    left: tuple[tuple[str, str], ...] = ()
    """(proxy, workload) that leaves one."""
    stopped: tuple[Proxy, ...] = ()


def change(before: Placement, after: Placement, workloads: Iterable[str]) -> Change:
    """`workloads` are the names of all."""
    pods = set(workloads)
    old, new = {p.name: p for p in before.proxies}, {p.name: p for p in after.proxies}
    stay = [(old[name], proxy) for name, proxy in new.items() if name in old]
    started = tuple(p for p in after.proxies if p.name not in old)
    stopped = tuple(p for p in before.proxies if p.name not in new)
    return Change(
        restarted=tuple(dict.fromkeys(p.sandbox for p in (*stopped, *started) if p.sandbox in pods)),
        started=started,
        entered=tuple((b.name, w) for a, b in stay for w in b.enters if w not in a.enters),
        captured=tuple(c for c in after.captures if c not in before.captures),
        told=tuple(b for a, b in stay if told(a) != told(b)),
        released=tuple(c for c in before.captures if c not in after.captures),
        left=tuple((a.name, w) for a, b in stay for w in a.enters if w not in b.enters),
        stopped=stopped,
    )


def told(proxy: Proxy) -> dict:
    """What a running proxy reads from its view's file: the mesh, its own routes and policies, who has a sidecar."""
    return proxy.view | {key: proxy.options[key] for key in ("l7", "sidecars") if key in proxy.options}


def of(stage: Stage | None, topology: Topology, plane: str) -> tuple[Topology, Placement]:
    """The topology and the placement of a stage; of the plane on the topology as it is, where there is none."""
    stage = stage or Stage()
    kinds = dict(stage.kinds)
    unknown = sorted(set(kinds) - {w.name for w in topology.workloads})
    if unknown:
        known = ", ".join(w.name for w in topology.workloads)
        raise UsageError(f"topology {topology.name} has no workload {unknown[0]!r} to be labelled; known: {known}")
    topology = replace(
        topology,
        workloads=tuple(replace(w, plane=kinds[w.name]) if w.name in kinds else w for w in topology.workloads),
        policies=(*topology.policies, *policyfile.parse(stage.policies, "stage")),
    )
    return topology, planespec.place(stage.plane or plane, topology)


def prepared(placement: Placement, cells: Iterable[Cell], *, drain_s: float) -> Placement:
    """With the time to drain, and the plug-in that crashes in exactly the proxies that a cell wants to crash."""
    armed = {
        proxy.name
        for cell in cells
        for event in cell.events
        if event.kind is Kind.CRASH
        for proxy in proxies_of(placement, event.on)
    }
    made = []
    for proxy in placement.proxies:
        options = dict(proxy.options)
        if not proxy.program.startswith("@"):
            options["drain_deadline_s"] = drain_s
            if proxy.name in armed:
                options["crash_header"] = CRASH_HEADER
        made.append(replace(proxy, options=options))
    return replace(placement, proxies=tuple(made))


def with_identities_of(before: Placement, after: Placement) -> Placement:
    """`before`, whose proxies hold already what the same ones need in `after`: a CA would issue it as they come."""
    later = {p.name: p.identities for p in after.proxies}
    return replace(
        before,
        proxies=tuple(
            replace(p, identities=tuple(dict.fromkeys((*p.identities, *later.get(p.name, ())))))
            for p in before.proxies
        ),
    )


def proxies_of(placement: Placement, on: str) -> tuple[Proxy, ...]:
    """Of `proxy:`, `waypoint:` or `l7:`; empty where the plane has none."""
    what, _, name = on.partition(":")
    takes = tuple(p for p in placement.proxies if name in p.serves and p.own_address is None)
    waypoints = tuple(p for p in placement.proxies if name in p.serves and p.own_address is not None)
    reads_http = waypoints or tuple(p for p in takes if "l7" in p.options)
    found = {"proxy": takes, "waypoint": waypoints, "l7": reads_http, "app": ()}
    if what not in found or not name:
        raise UsageError(f"an event cannot be on {on!r}; write proxy:, waypoint:, l7: or app: and a name")
    return found[what]
