"""Who reaches whom, captured or not, on one node and across nodes, with shared and dedicated ztunnels."""

from __future__ import annotations

import socket

import pytest

from tests.labs import needs_root
from tests.namespaced.worlds import World, read_all

pytestmark = [pytest.mark.root, needs_root]


def test_local_captured(mesh: World) -> None:
    """Same node, both captured: HBONE all the same, and both reporters count it as mutual TLS."""
    with mesh.logs("ztunnel.node-a", "inbound", str(mesh.identity("client")), f"{mesh.ip('near')}:9000"):
        assert mesh.echo("client", mesh.ip("near"), 9000) == b"hello"
    for reporter in ("source", "destination"):
        assert any(
            "tcp_connections_opened_total" in line
            and f'reporter="{reporter}"' in line
            and 'connection_security_policy="mutual_tls"' in line
            for line in mesh.metrics("node-a").splitlines()
        )


def test_server_uncaptured(mesh: World) -> None:
    """A destination outside the mesh gets the original bytes: no HBONE, no identity."""
    with mesh.logs("ztunnel.node-a", "outbound", f"dst.addr={mesh.ip('plain')}:9000") as lines:
        assert mesh.echo("client", mesh.ip("plain"), 9000) == b"hello"
    assert "dst.hbone_addr" not in lines[0] and "dst.identity" not in lines[0]


def test_client_uncaptured(mesh: World) -> None:
    """Plaintext from outside the mesh arrives by 15006."""
    with mesh.logs("ztunnel.node-b", "inbound", f"src.addr={mesh.ip('outsider')}:") as lines:
        assert mesh.echo("outsider", mesh.ip("far"), 9000) == b"hello"
    assert "src.identity" not in lines[0]


def test_cross_node_captured(mesh: World) -> None:
    """Two ztunnels, and both logs name both ends."""
    both = (str(mesh.identity("client")), f"{mesh.ip('far')}:15008", f"{mesh.ip('far')}:9000")
    with mesh.logs("ztunnel.node-b", "inbound", *both), mesh.logs("ztunnel.node-a", "outbound", *both):
        assert mesh.echo("client", mesh.ip("far"), 9000) == b"hello"


def test_service_address_of_captured_server(mesh: World) -> None:
    """A VIP is resolved by the client's ztunnel: the authority holds pod and target port."""
    with mesh.logs("ztunnel.node-b", f"dst.hbone_addr={mesh.ip('far')}:9000"):
        assert mesh.echo("client", mesh.vip("far"), 80) == b"hello"


def test_server_uncaptured_dedicated(single: World) -> None:
    """As above, with a ztunnel of the client's own."""
    with single.logs("ztunnel.client", "outbound", f"{single.ip('plain')}:9000"):
        assert single.echo("client", single.ip("plain"), 9000) == b"hello"


def test_client_uncaptured_dedicated(single: World) -> None:
    """As above, with a ztunnel of the server's own."""
    with single.logs("ztunnel.far", "inbound", f"src.addr={single.ip('outsider')}:"):
        assert single.echo("outsider", single.ip("far"), 9000) == b"hello"


def test_cross_node_captured_dedicated(single: World) -> None:
    """Two dedicated ztunnels speak HBONE to each other."""
    with single.logs("ztunnel.far", "inbound", str(single.identity("client")), f"{single.ip('far')}:9000"):
        assert single.echo("client", single.ip("far"), 9000) == b"hello"


@pytest.mark.parametrize("caller", ["client", "outsider"])
def test_application_sees_the_clients_own_address(mesh: World, caller: str) -> None:
    """Source address is kept through HBONE (client) and through plaintext 15006 (outsider)."""
    assert mesh.get(caller, mesh.ip("web"), 8080)["x-peer-address"].startswith(mesh.ip(caller))


def test_redirected_connection_keeps_its_original_destination(mesh: World) -> None:
    """The client's socket says where it wanted to go, and an address nobody has told ztunnel is passed on as it was."""
    with mesh.connect("client", mesh.ip("far"), 9000) as sock:
        assert sock.getpeername() == (mesh.ip("far"), 9000)
    with mesh.logs("ztunnel.node-a", "outbound", f"dst.addr={mesh.ip('node-b')}:7777", "error="):
        assert mesh.echo("client", mesh.ip("node-b"), 7777) == b""


def test_half_close_by_the_client(mesh: World) -> None:
    """The answer to a client that has shut its write side still reaches it, whole."""

    def after_the_end(sock: socket.socket) -> None:
        sock.sendall(read_all(sock)[::-1])

    message = bytes(range(256)) * 4096
    with mesh.serve("tester", 7000, after_the_end):
        for caller in ("client", "outsider"):
            assert mesh.echo(caller, mesh.ip("tester"), 7000, message) == message[::-1]


def test_half_close_by_the_server(mesh: World) -> None:
    """A client may go on sending after the server has shut its side."""
    got: list[bytes] = []

    def ends_first(sock: socket.socket) -> None:
        sock.sendall(b"bye")
        sock.shutdown(socket.SHUT_WR)
        got.append(read_all(sock))
        done.sendall(b".")

    for caller in ("client", "outsider"):
        done, wait = socket.socketpair()
        wait.settimeout(5)
        with mesh.serve("tester", 7001, ends_first), mesh.connect(caller, mesh.ip("tester"), 7001) as sock:
            assert read_all(sock) == b"bye"
            sock.sendall(b"x" * 100_000)
            sock.shutdown(socket.SHUT_WR)
            assert wait.recv(1) == b"."
        assert got.pop() == b"x" * 100_000


def test_server_that_speaks_first(mesh: World) -> None:
    """Nothing is sniffed at L4: a banner comes before the client has sent anything."""

    def banner(sock: socket.socket) -> None:
        sock.sendall(b"220 hello\n")
        sock.sendall(sock.recv(100))

    with mesh.serve("tester", 7002, banner), mesh.connect("client", mesh.ip("tester"), 7002) as sock:
        assert sock.recv(100) == b"220 hello\n"
        sock.sendall(b"after")
        assert sock.recv(100) == b"after"


def test_service_loadbalancing(mesh: World) -> None:
    """Connections to one VIP spread over a near HBONE endpoint, a far one and a plain TCP one."""
    with mesh.logs("ztunnel.node-a", "outbound", "mixed.default") as lines:
        for _ in range(40):
            assert mesh.echo("client", mesh.vip("mixed"), 80) == b"hello"
    for name, port in (("near", 15008), ("far", 15008), ("plain", 9000)):
        share = [line for line in lines if f"dst.addr={mesh.ip(name)}:{port}" in line]
        assert 2 <= len(share) <= 30, f"{name} took {len(share)} of 40"
        assert any(
            "opened_total" in line and f'destination_workload="{name}"' in line and 'reporter="source"' in line
            for line in mesh.metrics("node-a").splitlines()
        )
