"""Families of topologies made from a number: stars, lines, meshes of nodes, and labs of many hosts.

They end in the same checked `Topology` as a file does, without YAML between. Vary one with `Topology.with_link`.
"""

from __future__ import annotations

from collections.abc import Iterable

from testbed.errors import UsageError
from testbed.model.topology import (
    App,
    Impairment,
    Link,
    Node,
    Service,
    ServicePort,
    Topology,
    WaypointRef,
    Workload,
    link_addresses,
    node_network,
    service_address,
    workload_address,
)

HOSTS_PER_NODE = 250
_HTTP_PORT = 8080


def star(n: int, *, delay_ms: float = 0.0) -> Topology:
    """`n` nodes, all joined to the first; `delay_ms` one way per link. A client on the first node, a server on the
    last.
    """
    _at_least(n, 2, "a star")
    return _of_nodes(f"star-{n}", n, ((0, leaf) for leaf in range(1, n)), delay_ms)


def line(n: int, *, delay_ms: float = 0.0) -> Topology:
    """`n` nodes in a row; the client at one end, the server at the other."""
    _at_least(n, 2, "a line")
    return _of_nodes(f"line-{n}", n, ((i, i + 1) for i in range(n - 1)), delay_ms)


def mesh(n: int, *, delay_ms: float = 0.0) -> Topology:
    """`n` nodes, every two joined: n(n-1)/2 links."""
    _at_least(n, 2, "a mesh")
    return _of_nodes(f"mesh-{n}", n, ((a, b) for a in range(n) for b in range(a + 1, n)), delay_ms)


def hosts(n: int) -> Topology:
    """`n` idle workloads, up to 250 a node, nodes in a row: for measuring bring-up."""
    _at_least(n, 1, "a lab of hosts")
    nodes = _nodes(-(-n // HOSTS_PER_NODE))
    workloads = tuple(
        Workload(
            name=f"host-{i}",
            group="host",
            namespace="default",
            service_account="host",
            node=nodes[i // HOSTS_PER_NODE].name,
            address=workload_address(i // HOSTS_PER_NODE + 1, i % HOSTS_PER_NODE),
            app=App(kind="idle"),
            labels=(("app", "host"),),
        )
        for i in range(n)
    )
    links = _links(nodes, ((i, i + 1) for i in range(len(nodes) - 1)), 0.0)
    return Topology(name=f"hosts-{n}", nodes=nodes, workloads=workloads, services=(), links=links)


def _of_nodes(name: str, n: int, pairs: Iterable[tuple[int, int]], delay_ms: float) -> Topology:
    nodes = _nodes(n)
    server = _workload("server", nodes[-1], n, App(kind="http-echo", ports=(_HTTP_PORT,)))
    service = Service(
        name="server",
        namespace="default",
        address=service_address(0),
        ports=(ServicePort(port=_HTTP_PORT, target_port=_HTTP_PORT, protocol="http"),),
        endpoints=("server",),
    )
    return Topology(
        name=name,
        nodes=nodes,
        workloads=(_workload("client", nodes[0], 1, App(kind="idle")), server),
        services=(service,),
        links=_links(nodes, pairs, delay_ms),
    )


def _nodes(n: int) -> tuple[Node, ...]:
    nodes = []
    for number in range(1, n + 1):
        network, address = node_network(number)
        nodes.append(Node(name=f"node-{number}", zone="default", address=address, network=network))
    return tuple(nodes)


def _workload(name: str, node: Node, number: int, app: App) -> Workload:
    return Workload(
        name=name,
        group=name,
        namespace="default",
        service_account=name,
        node=node.name,
        address=workload_address(number, 0),
        app=app,
        labels=(("app", name),),
    )


def _links(nodes: tuple[Node, ...], pairs: Iterable[tuple[int, int]], delay_ms: float) -> tuple[Link, ...]:
    impairment = Impairment(delay_ms=delay_ms)
    links = []
    for index, (a, b) in enumerate(pairs):
        ends = link_addresses(index)
        a_name, b_name = nodes[a].name, nodes[b].name
        links.append(
            Link(a=a_name, b=b_name, a_address=ends[0], b_address=ends[1], a_to_b=impairment, b_to_a=impairment)
        )
    return tuple(links)


def _at_least(n: int, minimum: int, what: str) -> None:
    if n < minimum:
        raise UsageError(f"{what} of {n} cannot be; give at least {minimum}")


def crowd(per_node: int = 4, *, nodes: int = 2, services: int = 0) -> Topology:
    """`per_node` idle workloads on each of `nodes` nodes: each a service with a waypoint of its own, or, where
    `services` says how many, replicas of so many. For what stands there while nobody calls.
    """
    _at_least(per_node, 1, "a crowd")
    _at_least(nodes, 2, "a crowd's nodes")
    made, total = _nodes(nodes), per_node * nodes
    count = services or total
    if count > total:
        raise UsageError(f"{count} services of {total} workloads leave some without any; give at most {total}")
    workloads = tuple(
        Workload(
            name=f"app-{i}",
            group=f"svc-{i % count}",
            namespace="default",
            service_account=f"svc-{i % count}",
            node=made[i % nodes].name,
            address=workload_address(i % nodes + 1, i // nodes),
            app=App(kind="idle"),
            labels=(("app", f"svc-{i % count}"),),
        )
        for i in range(total)
    )
    port = ServicePort(port=_HTTP_PORT, target_port=_HTTP_PORT, protocol="http")
    offered = tuple(
        Service(
            name=f"svc-{number}",
            namespace="default",
            address=service_address(number),
            ports=(port,),
            endpoints=tuple(w.name for w in workloads if w.group == f"svc-{number}"),
            waypoint=WaypointRef(name=f"waypoint-{number}", node=made[number % nodes].name),
        )
        for number in range(count)
    )
    links = _links(made, ((i, i + 1) for i in range(nodes - 1)), 0.0)
    return Topology(name=f"crowd-{per_node}", nodes=made, workloads=workloads, services=offered, links=links)


BY_NAME = {"star": star, "line": line, "mesh": mesh, "hosts": hosts, "crowd": crowd}
"""As a cell of a sweep names them (`testbed.variants`)."""
