"""Where waypoints go: what the services of a topology ask for, on the node they name, each an identity of its own.

Services of one namespace that name the same waypoint share it: that is how one waypoint serves a namespace, a service
or the services of one account.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from planes.l7.place import l7_view
from planes.ztunnel.place import CLUSTER
from testbed.errors import UsageError
from testbed.model.identity import Identity
from testbed.model.placement import Placement, Proxy
from testbed.model.topology import Service, Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Waypoint:
    """One waypoint of a namespace, with its replicas' addresses."""

    name: str
    namespace: str
    node: str
    pods: tuple[tuple[str, str], ...]
    """(name, address) of each replica; the name is unique in the lab."""
    services: tuple[Service, ...]

    def identity(self, trust_domain: str) -> Identity:
        return Identity(trust_domain, self.namespace, self.name)

    @property
    def hostname(self) -> str:
        return f"{self.name}.{self.namespace}.svc.cluster.local"


def waypoints(topology: Topology, *, node: str | None = None) -> tuple[Waypoint, ...]:
    """All that services ask for; `node` puts every one there instead. Raises UsageError for a contradiction."""
    wanted: dict[tuple[str, str], list[Service]] = {}
    for service in topology.services:
        if service.waypoint is not None:
            wanted.setdefault((service.namespace, service.waypoint.name), []).append(service)
    if node is not None and all(n.name != node for n in topology.nodes):
        raise UsageError(f"no node is called {node!r}; there are {', '.join(n.name for n in topology.nodes)}")
    taken: dict[str, int] = {}
    found = []
    for (namespace, name), services in wanted.items():
        first = services[0].waypoint
        assert first is not None
        where = node or first.node
        network = ipaddress.ip_network(topology.node(where).network)
        base = name if sum(n == name for _, n in wanted) == 1 else f"{name}-{namespace}"
        pods = []
        for number in range(first.replicas):  # from the end of the node's network: workloads begin at its start
            taken[where] = taken.get(where, 0) + 1
            address = str(network.broadcast_address - taken[where])
            pods.append((base if number == 0 else f"{base}-{number + 1}", address))
        found.append(
            Waypoint(name=name, namespace=namespace, node=where, pods=tuple(pods), services=tuple(services))
        )
    return tuple(found)


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
                    serves=tuple(s.name for s in waypoint.services),
                    identities=(waypoint.identity(topology.trust_domain),),
                    view=view,
                    options={"workload": f"{waypoint.namespace}/{pod}", "l7": l7},
                    own_address=address,
                )
            )
    return Placement(plane="waypoint", proxies=tuple(found))
