"""Where to listen, and what each place is: topology and device names -> segments, and which of them a pair's traffic
crosses.

A segment is one capture point with a meaning: a workload's veth as seen in its node, one end of a link between nodes
(both of these are `wire` in the words of `model.placement.Claim`), or the loopback inside a workload's sandbox
(`local`).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from testbed.model.topology import Topology
from testbed.observe.capture import Point
from testbed.seams import Sandbox, end_name

WIRE, LOCAL = "wire", "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    sandbox: str
    device: str
    kind: str
    """`wire` or `local`, as in a claim."""
    label: str
    """For people: `veth of client`, `link a--b`, `inside client`."""
    workload: str | None = None
    """Whose veth or inside it is; None for links."""
    link: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """Equal to the interface name in the capture."""
        return f"{self.sandbox}:{self.device}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Everything a judge has to know about places; made by `lay_out`."""

    segments: tuple[Segment, ...]
    homes: Mapping[str, str]
    """Workload (or proxy with an own address) -> node."""
    addresses: Mapping[str, frozenset[str]]
    """Its own address, and those of services it stands behind: before a VIP is translated, that is what a packet
    bears."""
    routes: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    """(node, node) -> nodes passed, both ends included, where it is not the way of fewest links."""

    def crossed(self, source: str, destination: str, kind: str) -> tuple[Segment, ...]:
        """Segments that traffic from `source` to `destination` must appear on, in that order."""
        if kind == LOCAL:
            return tuple(
                s for name in (source, destination) for s in self.segments if s.kind == LOCAL and s.workload == name
            )
        found = [s for s in self.segments if s.kind == WIRE and s.workload == source]
        path = self.route(self.homes[source], self.homes[destination])
        for a, b in itertools.pairwise(path):
            found += [s for s in self.segments if s.link is not None and set(s.link) == {a, b}]
        return (*found, *(s for s in self.segments if s.kind == WIRE and s.workload == destination))

    def route(self, a: str, b: str) -> tuple[str, ...]:
        """Nodes from `a` to `b`; empty when no captured link joins them."""
        if (a, b) in self.routes:
            return tuple(self.routes[(a, b)])
        if (b, a) in self.routes:
            return tuple(reversed(self.routes[(b, a)]))
        queue, seen = deque([(a,)]), {a}
        while queue:
            path = queue.popleft()
            if path[-1] == b:
                return path
            for link in (s.link for s in self.segments if s.link is not None and path[-1] in s.link):
                peer = link[1] if link[0] == path[-1] else link[0]
                if peer not in seen:
                    seen.add(peer)
                    queue.append((*path, peer))
        return ()


def lay_out(
    topology: Topology,
    veths: Mapping[str, str],
    *,
    extra: Mapping[str, tuple[str, str]] | None = None,
    local: Sequence[str] = (),
    routes: Mapping[tuple[str, str], tuple[str, ...]] | None = None,
    catching: Sequence[str] = (),
) -> Layout:
    """`veths`: workload -> its veth's device name in its node (the runtime knows). Those without an entry are not
    watched.

    `extra`: proxies with an address of their own, name -> (node, address). `local`: workloads whose inside is watched
    as well. `catching`: nodes that take what their workloads send; on a veth it still bears the service's address.
    Of each link one end is watched, `a`'s: what is there passed the link or is about to.
    """
    homes = {w.name: w.node for w in topology.workloads}
    addresses = {w.name: {w.address} for w in topology.workloads}
    for service in topology.services:
        for endpoint in service.endpoints:
            addresses[endpoint].add(service.address)
    for name, (node, address) in (extra or {}).items():
        homes[name], addresses[name] = node, {address}
    for name in catching:
        homes[name] = name
        addresses[name] = {topology.node(name).address, *(s.address for s in topology.services)}
    segments = [
        Segment(sandbox=homes[name], device=device, kind=WIRE, label=f"veth of {name}", workload=name)
        for name, device in veths.items()
    ]
    segments += [
        Segment(sandbox=k.a, device=end_name(k, k.a), kind=WIRE, label=f"link {k.name}", link=(k.a, k.b))
        for k in topology.links
    ]
    segments += [Segment(sandbox=n, device="lo", kind=LOCAL, label=f"inside {n}", workload=n) for n in local]
    return Layout(
        segments=tuple(segments),
        homes=homes,
        addresses={name: frozenset(found) for name, found in addresses.items()},
        routes=dict(routes or {}),
    )


def capture_points(segments: Sequence[Segment], sandboxes: Mapping[str, Sandbox]) -> list[Point]:
    """What to hand to `observe.capture.Capture`."""
    return [Point(sandbox=s.sandbox, netns=sandboxes[s.sandbox].netns, device=s.device) for s in segments]
