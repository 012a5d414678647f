"""Proxies that end, workloads that leave, views and certificates that change under way."""

from __future__ import annotations

import hashlib
import signal
import time

import pytest

from testbed.pki import write_identity
from tests.labs import needs_root
from tests.namespaced.worlds import World, of, read_all, wait_for

pytestmark = [pytest.mark.root, needs_root]


def refused(world: World, source: str, address: str, port: int) -> bool:
    try:
        world.connect(source, address, port).close()
    except ConnectionRefusedError:
        return True
    return False


def test_ztunnel_shutdown(doomed: World) -> None:
    """While it drains, an open connection keeps working and new ones are refused; it ends once that one has."""
    server, proxy = doomed.ip("server"), doomed.proxy("node-a")
    with doomed.connect("client", server, 9000) as sock:
        sock.sendall(b"before")
        assert sock.recv(10) == b"before"
        proxy.signal(signal.SIGTERM)
        wait_for(lambda: refused(doomed, "client", server, 9000), "new connections are refused")
        sock.sendall(b"during")
        assert sock.recv(10) == b"during"
        assert proxy.poll() is None
    assert proxy.wait(2.0) == 0


def test_drain_has_a_deadline(doomed: World) -> None:
    """A connection that does not end is cut when the deadline (1.5 s here) is over."""
    with doomed.connect("client", doomed.ip("server"), 9000) as sock:
        sock.sendall(b"x")
        assert sock.recv(10) == b"x"
        began_s = time.monotonic()
        doomed.proxy("node-a").signal(signal.SIGTERM)
        assert read_all(sock) == b""
        assert time.monotonic() - began_s > 1.0
    assert doomed.proxy("node-a").wait(2.0) == 0


def test_killed_ztunnel_takes_its_node_along_and_nothing_falls_back(doomed: World) -> None:
    """Captured traffic fails, to the mesh and out of it, also inbound from uncaptured clients; uncaptured goes on."""
    server, free = doomed.ip("server"), doomed.ip("free")
    assert doomed.echo("client", free, 9000) == doomed.echo("free", server, 9000) == b"hello"
    with doomed.connect("client", server, 9000) as sock:
        sock.sendall(b"x")
        assert sock.recv(10) == b"x"
        doomed.proxy("node-a").signal(signal.SIGKILL)
        assert read_all(sock) == b""
    wait_for(lambda: refused(doomed, "client", server, 9000), "captured to captured")
    assert refused(doomed, "client", free, 9000)
    assert refused(doomed, "free", server, 9000)
    assert doomed.echo("free", free, 9000) == b"hello"


def test_server_shutdown(doomed: World) -> None:
    """The server's workload leaves: connect() succeeds at the client's own proxy, the exchange fails, old flows end."""
    server = doomed.ip("server")
    with doomed.connect("client", server, 9000) as sock:
        sock.sendall(b"x")
        assert sock.recv(10) == b"x"
        doomed.deployment.agents[0].remove("server")
        assert read_all(sock) == b""
    assert doomed.echo("client", server, 9000) == b""
    assert doomed.echo("client", doomed.ip("free"), 9000) == b"hello"


def test_bad_view_keeps_the_old_one(mesh: World) -> None:
    """A view that cannot be read, or is half wrong, changes nothing but the log."""
    proxy = mesh.deployment.placement.proxies[0]
    for bad in ({"workloads": [{"uid": "only"}]}, {"surprise": 1}):
        with mesh.logs(proxy.name, "new view refused, the old one stays"):
            mesh.deployment.configure(proxy, bad)
        assert mesh.echo("client", mesh.ip("far"), 9000) == b"hello"
    with mesh.edited(lambda view: of(view["services"], "far").update(ports={"81": 9000})):
        assert mesh.echo("client", mesh.vip("far"), 81) == b"hello"


def test_certificates_are_renewed_without_a_restart(mesh: World) -> None:
    """The next handshake shows the new certificate; tunnels that are open stay so."""
    name, identity, far = "ztunnel.node-b", mesh.identity("far"), mesh.ip("far")

    def shown() -> str:
        with mesh.secured("outsider", far, mesh.credentials(mesh.identity("outsider"))) as sock:
            return hashlib.sha256(sock.getpeercert(binary_form=True)).hexdigest()

    with mesh.connect("client", far, 9000) as sock:
        sock.sendall(b"before")
        assert sock.recv(10) == b"before"
        old, authority = shown(), mesh.deployment.authority
        place = next(mesh.deployment.folder(name).glob(f"identities/*.{identity.service_account}"))
        write_identity(place, authority.issue(identity, now=time.time()), authority.bundle, uid=place.stat().st_uid)
        mesh.proxy("node-b").signal(signal.SIGHUP)
        wait_for(lambda: shown() != old, "the new certificate is served")
        sock.sendall(b"after")
        assert sock.recv(10) == b"after"
    assert mesh.echo("near", far, 9000) == b"hello"
