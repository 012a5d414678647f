"""Where node proxies go, what their node catches for them, and what must then be seen on the wire. Pure.

A proxy lives in its node's namespace and has one identity, its own. Workloads have none: what they send is plain on
their veth, and so is what is delivered to them. Only between nodes there is mutual TLS, in the names of the nodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planes.claims import calls
from planes.l7.place import l7_view
from planes.ztunnel.place import CLUSTER, mesh_view
from testbed.errors import UsageError
from testbed.model.identity import Identity
from testbed.model.placement import Capture, CaptureKind, Claim, Encryption, Placement, Proxy
from testbed.model.topology import Node, Service, ServicePort, Topology, Workload

NAME = "node-l7"
NAMESPACE = "mesh-system"
"""Of the proxies; a view's workload of this namespace on the host network is one of them."""


@dataclass(frozen=True, slots=True)
class NodeL7Plane:
    """Fits `testbed.seams.Plane`."""

    name: str = NAME

    def place(self, topology: Topology, options: Mapping[str, object]) -> Placement:
        if options:
            raise UsageError(f"plane {NAME}: no option is called {sorted(options)[0]!r}; this plane takes none")
        view = mesh_view(
            topology,
            captured={w.name for w in topology.workloads if is_served(w)},  # who is reached by tunnel: to its node
            extra_workloads=tuple(_entry(topology, node) for node in _nodes(topology)),
        )
        found = [_proxy(topology, node, view) for node in _nodes(topology)]
        captures = tuple(
            Capture(workload=name, kind=CaptureKind.NODE, proxy=proxy.name) for proxy in found for name in proxy.serves
        )
        return Placement(plane=NAME, proxies=tuple(found), captures=captures, claims=claims(topology))


PLANE = NodeL7Plane()


def is_served(workload: Workload) -> bool:
    """Those that another plane's label claims are outside."""
    return workload.plane in (None, NAME)


def service_account(node: str) -> str:
    return f"{NAME}-{node}"


def identity(topology: Topology, node: str) -> Identity:
    """Of the proxy on it: all that its peers can prove about whoever calls from there."""
    return Identity(topology.trust_domain, NAMESPACE, service_account(node))


def _served(topology: Topology, node: str) -> list[Workload]:
    return [w for w in topology.on_node(node) if is_served(w)]


def _nodes(topology: Topology) -> list[Node]:
    return [node for node in topology.nodes if _served(topology, node.name)]


def _proxy(topology: Topology, node: Node, view: dict) -> Proxy:
    served = _served(topology, node.name)
    return Proxy(
        name=f"{NAME}.{node.name}",
        role=NAME,
        node=node.name,
        sandbox=node.name,
        program="planes.node_l7",
        serves=tuple(w.name for w in served),
        identities=(identity(topology, node.name),),
        view=view,
        options={
            "workload": f"{NAMESPACE}/{service_account(node.name)}",
            "l7": {f"{w.namespace}/{w.name}": l7_view(topology, workload=w) for w in served},
        },
    )


def _entry(topology: Topology, node: Node) -> dict:
    """The proxy as a workload of the mesh, in LOCAL shape: how others find its address and its identity."""
    name = service_account(node.name)
    return {
        "uid": f"{CLUSTER}//Pod/{NAMESPACE}/{name}",
        "name": name,
        "namespace": NAMESPACE,
        "serviceAccount": name,
        "trustDomain": topology.trust_domain,
        "workloadIps": [node.address],
        "networkMode": "HostNetwork",
        "protocol": "HBONE",
        "node": node.name,
        "workloadName": NAME,
        "workloadType": "daemonset",
        "canonicalName": NAME,
        "canonicalRevision": "latest",
        "clusterId": CLUSTER,
        "locality": {"region": "", "zone": node.zone, "subzone": ""},
        "services": {},
    }


def claims(topology: Topology) -> tuple[Claim, ...]:
    """For every call that somebody may make, one a leg: stops are workloads and the nodes whose proxies are passed."""
    found: dict[Claim, None] = {}
    for call in calls(topology):
        for claim in _legs(topology, *call):
            found[claim] = None
    return tuple(found)


def _legs(
    topology: Topology, client: Workload, service: Service, port: ServicePort, server: Workload
) -> Iterator[Claim]:
    nodes = list(dict.fromkeys(w.node for w in (client, server) if is_served(w))) if is_served(client) else []
    stops = (client.name, *nodes, server.name)
    for source, destination in itertools.pairwise(stops):
        between = (source, destination) == (client.node, server.node)
        yield Claim(
            source=source,
            destination=destination,
            segment="wire",
            encryption=Encryption.MTLS if between else Encryption.CLEAR,
            hbone=between,
            authority=f"{server.address}:{port.target_port}" if between else None,
            client_identity=identity(topology, source) if between else None,
            server_identity=identity(topology, destination) if between else None,
            service=service.name,
            port=port.port,
            stops=stops,
        )
