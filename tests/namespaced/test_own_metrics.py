"""ztunnel's own metrics through HBONE: asked as any address of the mesh is, answered under the ztunnel's identity."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from testbed import livemembers
from testbed.model.identity import Identity
from tests.labs import needs_root
from tests.namespaced.worlds import World, policy, wait_for, world

pytestmark = [pytest.mark.root, needs_root]

ZTUNNEL = Identity("cluster.local", "istio-system", "ztunnel")
GET = b"GET /metrics HTTP/1.1\r\nhost: metrics\r\nconnection: close\r\n\r\n"
SCRAPED = """
name: scraped
nodes: {node-a: {}, node-b: {}}
workloads:
  client: {node: node-a, serviceAccount: client}
  outsider: {node: node-a, serviceAccount: outsider, plane: none}
  server: {node: node-b, serviceAccount: server, app: {kind: tcp-echo, ports: [9000]}}
links:
  - {between: [node-a, node-b]}
"""


@pytest.fixture(scope="module")
def scraped() -> Iterator[World]:
    with world(SCRAPED, plane="ambient-l4:metrics=hbone") as made:
        yield made


@contextlib.contextmanager
def with_policy(mesh: World, **rule: object) -> Iterator[None]:
    """In the ztunnels' namespace."""
    row = policy("metrics", "Deny", [str(mesh.identity("client"))], **rule) | {"namespace": "istio-system"}
    with mesh.edited(lambda view: view["policies"].append(row)):
        yield


@pytest.mark.parametrize("node", ["node-a", "node-b"])
def test_hbone_metrics_access(scraped: World, node: str) -> None:
    """A plain GET of a captured workload, to its own node's ztunnel and to another's; both sides log what it was."""
    address = scraped.ip(node)
    client = scraped.identity("client")
    inbound = (
        "connection complete", 'direction="inbound"', 'src.workload="client"', 'dst.workload="ztunnel"',
        f"dst.addr={address}:15008", f"dst.hbone_addr={address}:15020", f'src.identity="{client}"',
        f'dst.identity="{ZTUNNEL}"',
    )  # fmt: skip
    with scraped.logs(f"ztunnel.{node}", *inbound):
        answer = scraped.echo("client", address, 15020, GET)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and b"# TYPE istio_tcp_connections_opened_total" in answer

    def counted(name: str) -> bool:
        labels = ('reporter="destination"', 'destination_workload="ztunnel"', 'connection_security_policy="mutual_tls"')
        rows = [x for x in scraped.metrics(node).splitlines() if name in x and all(text in x for text in labels)]
        return any(float(row.rpartition(" ")[2]) >= 1 for row in rows)

    for name in ("istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"):
        wait_for(lambda name=name: counted(name), name)


def test_metrics_are_for_whom_policy_lets(scraped: World) -> None:
    """By identity, as at any workload; nobody else's traffic is judged by it."""
    with with_policy(scraped), scraped.logs("ztunnel.node-b", "explicitly denied by istio-system/metrics"):
        assert scraped.echo("client", scraped.ip("node-b"), 15020, GET) == b""
        assert scraped.echo("client", scraped.ip("server"), 9000) == b"hello"
    assert scraped.echo("client", scraped.ip("node-b"), 15020, GET).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("port", [15000, 15021, 15008, 22])
def test_nothing_else_of_the_node_is_reached(scraped: World, port: int) -> None:
    """The node's own services, admin among them, stay out of reach: 503, and no byte."""
    address = scraped.ip("node-b")
    assert scraped.connect_status("outsider", address, f"{address}:{port}", scraped.identity("client")) == 503
    assert scraped.echo("client", address, port, GET) == b""


def test_in_clear_the_metrics_are_no_nearer_than_before(scraped: World) -> None:
    """Whoever is not in the mesh finds nobody at the port."""
    with pytest.raises(ConnectionRefusedError):
        scraped.echo("outsider", scraped.ip("node-b"), 15020, GET)


def test_an_authority_of_another_address_is_refused(scraped: World) -> None:
    """The ztunnel's own listener is no way to its workloads: 400, as for any address that is not its."""
    address, server = scraped.ip("node-b"), scraped.ip("server")
    assert scraped.connect_status("outsider", address, f"{server}:9000", scraped.identity("client")) == 400


def test_the_ztunnel_keeps_its_own_identity_when_its_workloads_leave(scraped: World) -> None:
    """It is the last to go."""
    livemembers.leave(scraped.deployment, "server")
    assert str(ZTUNNEL) in scraped.dump("node-b") and "sa/server" not in scraped.dump("node-b").split('"proxies"')[0]
    assert scraped.echo("client", scraped.ip("node-b"), 15020, GET).startswith(b"HTTP/1.1 200")
    livemembers.join(scraped.deployment, "server")
    assert scraped.echo("client", scraped.ip("server"), 9000) == b"hello"
