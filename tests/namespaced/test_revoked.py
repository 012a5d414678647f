"""Certificates that were taken back: their owners are refused at both ends, and cut where they are connected."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest
from cryptography import x509

from testbed.pki import CERTIFICATE_FILE
from tests.labs import needs_root
from tests.namespaced.worlds import World, read_all, wait_for

pytestmark = [pytest.mark.root, needs_root]

CLIENTS, SERVERS = "node-a", "node-b"
REPORTER = {CLIENTS: "source", SERVERS: "destination"}


def serial(mesh: World, workload: str) -> int:
    node, account = mesh.topology.workload(workload).node, mesh.identity(workload).service_account
    (place,) = mesh.deployment.folder(f"ztunnel.{node}").glob(f"identities/*.{account}")
    return x509.load_pem_x509_certificate((place / CERTIFICATE_FILE).read_bytes()).serial_number


@contextlib.contextmanager
def able_to_revoke(mesh: World, node: str, workload: str) -> Iterator[Callable[[], None]]:
    """Yields what takes the workload's certificate back, as far as this node's ztunnel is told; all is well after."""
    file = mesh.deployment.folder(f"ztunnel.{node}") / "crl.pem"
    authority = mesh.deployment.authority

    def write(*serials: int) -> None:
        new = file.with_name("crl.new")
        new.write_bytes(authority.revocation_list(serials, now=time.time()))
        new.replace(file)

    try:
        yield lambda: write(serial(mesh, workload))
    finally:
        write()
        wait_for(lambda: mesh.echo("client", mesh.ip("far"), 9000) == b"hello", "nobody is on the list any more")


def rejected(mesh: World, node: str) -> float:
    name = f'istio_crl_policy_rejections_total{{reporter="{REPORTER[node]}"}} '
    return sum(float(x.removeprefix(name)) for x in mesh.metrics(node).splitlines() if x.startswith(name))


@pytest.mark.parametrize(("node", "workload"), [(SERVERS, "client"), (CLIENTS, "far")], ids=["inbound", "outbound"])
def test_crl_rejects_revoked_cert(mesh: World, node: str, workload: str) -> None:
    """A new connection meets it at the handshake; who else has that ztunnel as a peer notices nothing."""
    before = rejected(mesh, node)
    with able_to_revoke(mesh, node, workload) as revoke:
        revoke()
        wait_for(lambda: mesh.echo("client", mesh.ip("far"), 9000, b"secret") == b"", "the peer is refused")
        with mesh.logs(f"ztunnel.{node}", "the certificate was revoked"):
            assert mesh.echo("client", mesh.ip("far"), 9000, b"secret") == b""
        assert rejected(mesh, node) > before
        other = ("near", "far") if workload == "client" else ("client", "named")
        assert mesh.echo(other[0], mesh.vip(other[1]), 80) == b"hello"


@pytest.mark.parametrize(("node", "workload"), [(SERVERS, "client"), (CLIENTS, "far")], ids=["inbound", "outbound"])
def test_crl_terminates_existing_connection_on_revocation(mesh: World, node: str, workload: str) -> None:
    """It ends within the time of a look at the file, and the log says why; a neighbour's stays open."""
    before, other = rejected(mesh, node), ("near", "far") if workload == "client" else ("client", "named")
    with (
        able_to_revoke(mesh, node, workload) as revoke,
        mesh.connect("client", mesh.ip("far"), 9000) as sock,
        mesh.connect(other[0], mesh.vip(other[1]), 80) as beside,
    ):
        for one in (sock, beside):
            one.sendall(b"x")
            assert one.recv(1) == b"x"
        with mesh.logs(f"ztunnel.{node}", "connection closed: the certificate was revoked"):
            revoke()
            assert read_all(sock) == b""
        assert rejected(mesh, node) > before
        beside.sendall(b"y")
        assert beside.recv(1) == b"y"


def test_a_list_that_cannot_be_read_changes_nothing(mesh: World) -> None:
    """Nor does it let those in again who were on the last one."""
    with able_to_revoke(mesh, SERVERS, "client") as revoke:
        revoke()
        wait_for(lambda: mesh.echo("client", mesh.ip("far"), 9000) == b"", "the peer is refused")
        with mesh.logs(f"ztunnel.{SERVERS}", "crl.pem", "stays as it was"):
            file = mesh.deployment.folder(f"ztunnel.{SERVERS}") / "crl.pem"
            file.with_name("crl.new").write_text("nonsense")
            file.with_name("crl.new").replace(file)
        assert mesh.echo("client", mesh.ip("far"), 9000) == b""
