"""Where waypoints go: what services and workloads of a topology ask for, on the node they name, each an identity of its
own.

Those of one namespace that name the same waypoint share it: that is how one waypoint serves a namespace, a service
account, or several services (`testbed.topowaypoints` says who names which).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from planes.l7.place import l7_view
from planes.ztunnel.place import CLUSTER, mesh_view
from testbed.errors import UsageError
from testbed.model.identity import Identity
from testbed.model.placement import Placement, Proxy
from testbed.model.topology import Service, Topology, WaypointRef, Workload, waypoint_sandboxes


class State(StrEnum):
    """What the mesh knows of the waypoints that are asked for (facts/hbone 7, row 4)."""

    READY = "ready"
    LEFT_OUT = "left-out"
    """Not ready, and istiod leaves them out: traffic goes direct, their policies are not enforced."""
    MISSING = "missing"
    """Named in what ztunnels know, and not to be found there: traffic is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waypoint:
    """One waypoint of a namespace, with its replicas' addresses."""

    name: str
    namespace: str
    node: str
    pods: tuple[tuple[str, str], ...]
    """(name, address) of each replica; the name is unique in the lab."""
    services: tuple[Service, ...]
    """Whose address it takes."""
    workloads: tuple[Workload, ...] = ()
    """Whose own address it takes."""

    def identity(self, trust_domain: str) -> Identity:
        return Identity(trust_domain, self.namespace, self.name)

    @property
    def hostname(self) -> str:
        return f"{self.name}.{self.namespace}.svc.cluster.local"


def waypoints(topology: Topology, *, node: str | None = None) -> tuple[Waypoint, ...]:
    """All that is asked for; `node` puts every one there instead. Raises UsageError for a contradiction."""
    if node is not None and all(n.name != node for n in topology.nodes):
        raise UsageError(f"no node is called {node!r}; there are {', '.join(n.name for n in topology.nodes)}")
    wanted: dict[tuple[str, str], tuple[WaypointRef, list[Workload], list[Service]]] = {}
    for workload in topology.workloads:
        if workload.waypoint is not None:
            _wanted(wanted, workload.namespace, workload.waypoint)[1].append(workload)
    for service in topology.services:
        if service.waypoint is not None:
            _wanted(wanted, service.namespace, service.waypoint)[2].append(service)
    used = {w.address for w in topology.workloads}
    found: list[Waypoint] = []
    for (namespace, name), (ref, workloads, services) in wanted.items():
        where = node or ref.node
        first = all(held.name != name for held in found)
        pods = tuple(
            (pod, _address(topology, where, used)) for pod in waypoint_sandboxes(ref, namespace, first=first)
        )
        found.append(
            Waypoint(
                name=name,
                namespace=namespace,
                node=where,
                pods=pods,
                services=tuple(services),
                workloads=tuple(workloads),
            )
        )
    return tuple(found)


def _wanted(wanted: dict, namespace: str, ref: WaypointRef) -> tuple:
    return wanted.setdefault((namespace, ref.name), (ref, [], []))


def _address(topology: Topology, node: str, used: set[str]) -> str:
    """From the end of the node's network: workloads begin at its start."""
    hosts = list(ipaddress.ip_network(topology.node(node).network).hosts())
    address = next((str(host) for host in reversed(hosts[1:]) if str(host) not in used), None)
    if address is None:
        raise UsageError(f"node {node} has no address left for a waypoint; put it on another node")
    used.add(address)
    return address


def view_entries(topology: Topology, placed: Sequence[Waypoint]) -> tuple[dict, ...]:
    """The waypoints as workloads, in LOCAL shape."""
    return tuple(
        {
            "uid": f"{CLUSTER}//Pod/{waypoint.namespace}/{pod}",
            "name": pod,
            "namespace": waypoint.namespace,
            "serviceAccount": waypoint.name,
            "trustDomain": topology.trust_domain,
            "workloadIps": [address],
            "protocol": "HBONE",
            "node": waypoint.node,
            "workloadName": waypoint.name,
            "workloadType": "deployment",
            "canonicalName": waypoint.name,
            "canonicalRevision": "latest",
            "clusterId": CLUSTER,
            "locality": {"region": "", "zone": topology.node(waypoint.node).zone, "subzone": ""},
            "services": {f"{waypoint.namespace}/{waypoint.hostname}": {"15008": 15008}},
        }
        for waypoint in placed
        for pod, address in waypoint.pods
    )


def view_services(placed: Sequence[Waypoint]) -> tuple[dict, ...]:
    """A service per waypoint, for its replicas to be balanced over."""
    return tuple(
        {"name": w.name, "namespace": w.namespace, "hostname": w.hostname, "vips": [], "ports": {"15008": 15008}}
        for w in placed
    )


def waypoint_of(placed: Sequence[Waypoint]) -> dict[str, str]:
    """Service name to its waypoint, as the view names it."""
    return {s.name: f"{w.namespace}/{w.hostname}" for w in placed for s in w.services}


def workload_waypoint_of(placed: Sequence[Waypoint]) -> dict[str, str]:
    """As `waypoint_of`, for traffic to a workload's own address."""
    return {s.name: f"{w.namespace}/{w.hostname}" for w in placed for s in w.workloads}


def mesh_with_waypoints(
    topology: Topology, *, captured: Collection[str], node: str | None = None, state: str = State.READY
) -> tuple[tuple[Waypoint, ...], dict]:
    """Waypoints to be placed, and the view of a mesh that knows them as `state` says."""
    if state not in list(State):
        raise UsageError(f"waypoints cannot be {state!r}; they are one of {', '.join(State)}")
    asked = waypoints(topology, node=node)
    named, placed = () if state == State.LEFT_OUT else asked, asked if state == State.READY else ()
    view = mesh_view(
        topology, captured=captured, waypoints=waypoint_of(named), workload_waypoints=workload_waypoint_of(named),
        extra_workloads=view_entries(topology, placed), extra_services=view_services(placed),
    )  # fmt: skip
    return placed, view


def proxies(topology: Topology, placed: Sequence[Waypoint], view: dict) -> Placement:
    """`view` is the LOCAL one that the ztunnels have, too."""
    found = []
    for waypoint in placed:
        l7 = l7_view(topology, waypoint=(waypoint.namespace, waypoint.name), services=waypoint.services)
        for pod, address in waypoint.pods:
            found.append(
                Proxy(
                    name=f"waypoint.{pod}",
                    role="waypoint",
                    node=waypoint.node,
                    sandbox=pod,
                    program="planes.waypoint",
                    serves=tuple(s.name for s in (*waypoint.services, *waypoint.workloads)),
                    identities=(waypoint.identity(topology.trust_domain),),
                    view=view,
                    options={"workload": f"{waypoint.namespace}/{pod}", "l7": l7},
                    own_address=address,
                )
            )
    return Placement(plane="waypoint", proxies=tuple(found))
