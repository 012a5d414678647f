"""A topology as checked: nodes, workloads, services, links, with every address planned. No handles, no I/O.

`topofile` makes one from YAML, `topologies.families` from a number; both end in `Topology`, and variation is
`topology.with_link(...)`, never templating. Addresses are plain dotted text, delays milliseconds one way.

Address plan: node n (from 1) has 10.(n>>8).(n&255).0/24; its gateway towards workloads is .1 and its workloads count
from .2;
the node's own address is the gateway's. Services are 10.96.0.0/16 (as Kubernetes' default). A link k uses the /31 at
172.16.0.0 + 2k. Nothing else is ever routed, so nothing in a lab has a way out.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from dataclasses import dataclass, field

from testbed.model.identity import DEFAULT_TRUST_DOMAIN, Identity

WORKLOAD_NETWORK = "10.0.0.0/8"
SERVICE_NETWORK = "10.96.0.0/16"
LINK_NETWORK = "172.16.0.0/12"
ROOT_NAMESPACE = "istio-system"


LEAST_RATE_MBIT = 0.02
"""A full frame takes 0.6 s at it. TCP sends again what is not acknowledged after a second (RFC 6298), so a line of half
this rate would carry more repetitions than data.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GilbertElliott:
    """Two-state loss: per packet, good→bad with `p`, bad→good with `r`;
    lost with `loss_bad` / `loss_good` in that state.
    """

    p: float
    r: float
    loss_bad: float = 1.0
    loss_good: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """What one direction of a link adds. Zero delay, loss and rate together mean a plain link."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    """Standard deviation of a normal distribution clamped to ±3σ; order is kept."""
    loss: float = 0.0
    """Probability 0..1 of independent loss."""
    gilbert_elliott: GilbertElliott | None = None
    """Bursty loss; excludes `loss`."""
    rate_mbit: float = 0.0
    """0 means unlimited."""
    queue_ms: float = 50.0
    """Depth of the rate limiter's queue, in time; drop-tail."""

    @property
    def is_plain(self) -> bool:
        """True when nothing is to be added, so that a bare veth will do."""
        return not (self.delay_ms or self.jitter_ms or self.loss or self.gilbert_elliott or self.rate_mbit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    name: str
    zone: str
    address: str
    """The gateway address of its workloads; reachable from every workload of the lab."""
    network: str
    """Its workloads' network, `10.x.y.0/24`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """What a workload runs: `http-echo`, `tcp-echo`, `image` (any program in an image of the user's own), or `idle` (a
    client: nothing listens until load is driven from it).
    """

    kind: str
    ports: tuple[int, ...] = ()
    service_time_ms: float = 0.0
    calls: tuple[str, ...] = ()
    """Names of services that an `http-echo` calls, one after another, before it answers (a→b→c chains)."""
    image: str = ""
    """Of an `image`: its name in the engine, or where the engine may pull it."""
    command: tuple[str, ...] = ()
    """Of an `image`: instead of the image's own command; empty keeps that."""
    environment: tuple[tuple[str, str], ...] = ()
    """Of an `image`: variables beside the image's own."""
    writable: tuple[str, ...] = ()
    """Of an `image`: folders in memory that it may write to; the rest of its files are read-only."""
    user_id: int | None = None
    """Of an `image`: the user id that it runs as; None is that of all applications."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One running copy. `group` is the name written in the file,
    `name` has the replica's number when there are several.
    """

    name: str
    group: str
    namespace: str
    service_account: str
    node: str
    address: str
    app: App
    plane: str | None = None
    """A label that overrides the lab's plane for this workload (hybrid): `sidecar`, `ambient`, `none`;
    None = the lab's.
    """
    labels: tuple[tuple[str, str], ...] = ()
    waypoint: WaypointRef | None = None
    """For traffic to its own address, whatever waypoint its services have."""
    hostname: str = ""
    """The DNS name by which ztunnels know it, and then by no address: they resolve it when a connection needs it. What
    is behind such a name in Istio is an endpoint of a ServiceEntry. Replicas share it. L7 proxies are told addresses.
    """

    def identity(self, trust_domain: str = DEFAULT_TRUST_DOMAIN) -> Identity:
        return Identity(trust_domain, self.namespace, self.service_account)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    port: int
    target_port: int
    protocol: str = "tcp"
    """`http`, `http2`, `grpc` or `tcp`, as Kubernetes' appProtocol; L4 planes ignore it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaypointRef:
    """A service or workload served by a waypoint: which one (name), on which node its proxies run, how many."""

    name: str
    node: str
    replicas: int = 1
    handles: str = "service"
    """Istio's `waypoint-for`: traffic addressed to a `service`, to a `workload`'s own address, or `all`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    name: str
    namespace: str
    address: str
    ports: tuple[ServicePort, ...]
    endpoints: tuple[str, ...]
    """Names of the workloads behind it."""
    waypoint: WaypointRef | None = None
    """Honoured by planes that have waypoints; others ignore it."""
    traffic_distribution: str = "any"
    """`any`, `prefer-same-zone`, `prefer-same-node`, `local` (internalTrafficPolicy: Local)."""

    @property
    def hostname(self) -> str:
        return f"{self.name}.{self.namespace}.svc.cluster.local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A wire between two nodes. `a` and `b` are node names; the /31 addresses belong to its ends."""

    a: str
    b: str
    a_address: str
    b_address: str
    a_to_b: Impairment = field(default_factory=Impairment)
    b_to_a: Impairment = field(default_factory=Impairment)

    @property
    def name(self) -> str:
        return f"{self.a}--{self.b}"

    @property
    def rtt_ms(self) -> float:
        return self.a_to_b.delay_ms + self.b_to_a.delay_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    name: str
    nodes: tuple[Node, ...]
    workloads: tuple[Workload, ...]
    services: tuple[Service, ...]
    links: tuple[Link, ...]
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    policies: tuple[object, ...] = ()
    """Istio resources as `model.policy` reads them (PeerAuthentication, AuthorizationPolicy)."""

    def node(self, name: str) -> Node:
        return next(n for n in self.nodes if n.name == name)

    def workload(self, name: str) -> Workload:
        return next(w for w in self.workloads if w.name == name)

    def service(self, name: str) -> Service:
        return next(s for s in self.services if s.name == name)

    def link(self, a: str, b: str) -> Link:
        return next(k for k in self.links if {k.a, k.b} == {a, b})

    def on_node(self, node: str) -> tuple[Workload, ...]:
        return tuple(w for w in self.workloads if w.node == node)

    def with_link(
        self, a: str, b: str, *, a_to_b: Impairment | None = None, b_to_a: Impairment | None = None
    ) -> Topology:
        """The same topology with one link's impairments replaced; directions are meant as written in the call."""
        links = []
        for link in self.links:
            if {link.a, link.b} == {a, b}:
                forward, backward = (a_to_b, b_to_a) if link.a == a else (b_to_a, a_to_b)
                link = dataclasses.replace(link, a_to_b=forward or link.a_to_b, b_to_a=backward or link.b_to_a)
            links.append(link)
        return dataclasses.replace(self, links=tuple(links))


def node_network(number: int) -> tuple[str, str]:
    """(network, gateway address) of node `number`, counted from 1. Raises ValueError beyond the plan."""
    if not 1 <= number < 96 * 256:
        raise ValueError(f"node number {number} is outside the address plan (1..{96 * 256 - 1})")
    return f"10.{number >> 8}.{number & 255}.0/24", f"10.{number >> 8}.{number & 255}.1"


def workload_address(node_number: int, index: int) -> str:
    """Address of workload `index` (from 0) of a node; a node holds 253."""
    if not 0 <= index < 253:
        raise ValueError(f"a node holds 253 workloads, index {index} is one too many")
    return f"10.{node_number >> 8}.{node_number & 255}.{index + 2}"


def service_address(index: int) -> str:
    return str(ipaddress.ip_address("10.96.0.0") + 10 + index)


def link_addresses(index: int) -> tuple[str, str]:
    base = ipaddress.ip_address("172.16.0.0") + 2 * index
    return str(base), str(base + 1)


def waypoint_sandboxes(waypoint: WaypointRef, namespace: str, *, first: bool) -> tuple[str, ...]:
    """Names of a waypoint's replicas in the lab; a later one of the same name (in another namespace) says where."""
    base = waypoint.name if first else f"{waypoint.name}-{namespace}"
    return tuple(base if number == 1 else f"{base}-{number}" for number in range(1, waypoint.replicas + 1))
