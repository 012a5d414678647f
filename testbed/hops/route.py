"""Places that a call must pass, in order, and what lies between each two: from topology and placement. Pure.

What is to be seen is said before anything is: a place that should have shown a request and did not is then missing, and
nobody takes its neighbours for one hop. Stops are those of the plane's claims (`model.placement.Claim.call`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from testbed.model.placement import CaptureKind, Claim, Placement
from testbed.model.topology import Topology
from testbed.runtime.routing import paths
from testbed.runtime.wiring import port_name
from testbed.seams import end_name
from testbed.verify.segments import Layout, lay_out

CLIENT, APP, PROXY, VETH, NODE, WIRE = "client", "app", "proxy", "veth", "node", "wire"
"""Kinds of hops: the load generator; the server's application; a proxy; a veth pair; a node that forwards; a link."""
INSIDE, POD, PORT, LINK = "inside", "pod", "port", "link"
"""Kinds of places: loopback of a workload; its end of its veth; the node's end of that; an end of a link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A device that a request crosses on one leg of its way."""

    interface: str
    """`<sandbox>:<device>`."""
    kind: str
    whose: str
    """Workload, proxy or link."""
    sandbox: str
    leg: int
    towards: frozenset[str]
    """Addresses of where the leg ends: by these two crossings of one device are told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """What lies between a place and the next one."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    places: tuple[Place, ...]
    hops: tuple[Hop, ...]
    """One fewer than places."""
    client: str
    server: str

    @property
    def interfaces(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(place.interface for place in self.places))


def ways(topology: Topology, placement: Placement, claims: Sequence[Claim], endpoint: str) -> list[Way]:
    """Every way to an endpoint that one of `claims` (those of the call, `proof.concerned`) speaks of."""
    calls = dict.fromkeys(claim.call for claim in claims if claim.call[-1] == endpoint)
    own = {p.sandbox: (p.node, p.own_address) for p in placement.proxies if p.own_address}
    nodes = [node.name for node in topology.nodes]
    catching = [name for name in nodes if any(name in call for call in calls)]
    layout = lay_out(topology, {}, extra=own, routes=paths(topology), catching=catching)
    return [_way(topology, placement, layout, call) for call in calls]


def _way(topology: Topology, placement: Placement, layout: Layout, call: Sequence[str]) -> Way:
    inside = {c.workload for c in placement.captures if c.kind in (CaptureKind.IN_POD, CaptureKind.SIDECAR)}
    nodes = {node.name for node in topology.nodes}
    places: list[Place] = []
    for leg, (source, destination) in enumerate(itertools.pairwise(call)):
        towards = layout.addresses[destination]
        ends = [
            list(_ends(stop, layout.homes[stop], inside)) if stop not in nodes else [] for stop in (source, destination)
        ]
        found = [*ends[0], *_links(topology, layout.route(layout.homes[source], layout.homes[destination]))]
        found += reversed(ends[1])
        places += [
            Place(interface=f"{sandbox}:{device}", kind=kind, whose=whose, sandbox=sandbox, leg=leg, towards=towards)
            for sandbox, device, kind, whose in found
        ]
    # A waypoint serves workloads, too, but stands on the way to them and not in them.
    roles = {served: p.role for p in placement.proxies if not p.own_address for served in p.serves}
    hops = [_hop(a, b, call, roles, nodes) for a, b in itertools.pairwise(places)]
    names = [hop.name for hop in hops]
    hops = [  # a waypoint's veth, and its node, are passed on the way in and on the way out
        replace(hop, name=f"{hop.name}, to {call[place.leg + 1]}") if names.count(hop.name) > 1 else hop
        for hop, place in zip(hops, places[1:], strict=True)
    ]
    return Way(places=tuple(places), hops=tuple(hops), client=call[0], server=call[-1])


def _ends(stop: str, home: str, inside: set[str]) -> Iterator[tuple[str, str, str, str]]:
    """(sandbox, device, kind, whose) from a workload outwards."""
    if stop in inside:
        yield stop, "lo", INSIDE, stop
    yield stop, "eth0", POD, stop
    yield home, port_name(stop), PORT, stop


def _links(topology: Topology, route: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    for a, b in itertools.pairwise(route):
        link = topology.link(a, b)
        yield a, end_name(link, a), LINK, link.name
        yield b, end_name(link, b), LINK, link.name


def _hop(a: Place, b: Place, call: Sequence[str], roles: dict[str, str], nodes: set[str]) -> Hop:
    if a.leg != b.leg:
        stop = call[b.leg]
        return Hop(kind=PROXY, name=f"proxy of {stop}" if stop in nodes else stop)
    kinds = {a.kind, b.kind}
    if kinds == {INSIDE, POD}:
        return Hop(kind=PROXY, name=f"{roles.get(a.whose, 'proxy')} of {a.whose}")
    if kinds == {POD, PORT}:
        return Hop(kind=VETH, name=f"veth of {a.whose}")
    if kinds == {LINK} and a.whose == b.whose and a.sandbox != b.sandbox:
        return Hop(kind=WIRE, name=f"link {a.whose}")
    return Hop(kind=NODE, name=f"{a.sandbox} forwards")
