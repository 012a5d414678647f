"""Policy, identities and authorities at the destination: who is let in, and what is told to whom is not."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable

import pytest

from testbed.model.identity import Identity
from testbed.pki import CertificateAuthority
from tests.labs import needs_root
from tests.namespaced.worlds import World, of, policy, read_all

pytestmark = [pytest.mark.root, needs_root]


def adding(*policies: dict) -> Callable[[dict], None]:
    return lambda view: view["policies"].extend(policies)


def test_policy_denies_with_401_and_says_why(mesh: World) -> None:
    """A bare CONNECT of a client that the only ALLOW policy does not name; whom it names goes through."""
    far = mesh.ip("far")
    with mesh.edited(adding(policy("only-client", "Allow", [str(mesh.identity("client"))]))):
        with mesh.logs("ztunnel.node-b", "inbound", "allow policies exist, but none allowed"):
            assert mesh.connect_status("outsider", far, f"{far}:9000", mesh.identity("outsider")) == 401
        assert mesh.connect_status("outsider", far, f"{far}:9000", mesh.identity("client")) == 200
        with mesh.logs("ztunnel.node-a", "outbound", "http status: 401"):
            assert mesh.echo("near", far, 9000) == b""
        assert mesh.echo("client", far, 9000) == b"hello"


@pytest.mark.parametrize("caller", ["client", "outsider"])
def test_a_policy_on_trial_is_logged_and_changes_nothing(mesh: World, caller: str) -> None:
    """A dry-run DENY for everybody: over HBONE (client) and plaintext (outsider) the exchange works, the log tells."""
    trial = {**policy("trial", "Deny", ["nobody"], negated=True), "dryRun": True}
    told = mesh.logs("ztunnel.node-b", "rbac\tdry-run match", 'policy="default/trial"', f"src.addr={mesh.ip(caller)}:")
    with mesh.edited(adding(trial)), told as lines:
        assert mesh.echo(caller, mesh.ip("far"), 9000) == b"hello"
    assert (str(mesh.identity("client")) in lines[0]) is (caller == "client")


def test_plaintext_has_no_identity_to_be_allowed(mesh: World) -> None:
    """Under any ALLOW by principal a plaintext connection is accepted by the proxy and closed without a byte."""
    with mesh.edited(adding(policy("only-outsider", "Allow", [str(mesh.identity("outsider"))]))):
        assert mesh.echo("outsider", mesh.ip("far"), 9000) == b""


def test_hbone_ip_mismatch(mesh: World) -> None:
    """An authority for another pod's address gets 400, also on the same node; the log names both."""
    far, web = mesh.ip("far"), mesh.ip("web")
    with mesh.logs("ztunnel.node-b", f"ip mismatch: {far} != {web}"):
        assert mesh.connect_status("outsider", far, f"{web}:8080", mesh.identity("outsider")) == 400
    assert mesh.connect_status("outsider", far, f"{far}:9000", mesh.identity("outsider")) == 200


def test_svc_hostname_port(mesh: World) -> None:
    """An authority by host name: the service's port becomes the target port at the destination."""
    host = mesh.topology.service("far").hostname
    with mesh.hbone("outsider", mesh.ip("far"), f"{host}:80", mesh.identity("outsider")) as (status, talk):
        assert (status, talk(b"by name")) == (200, b"by name")
    assert mesh.connect_status("outsider", mesh.ip("far"), f"{host}:81", mesh.identity("outsider")) == 503
    assert mesh.connect_status("outsider", mesh.ip("far"), "nobody.x.svc:80", mesh.identity("outsider")) == 503


def test_svc_hostname_named_port(mesh: World) -> None:
    """A service target of 0 is a named port: the endpoint's own map says which, by name and by VIP."""
    service = mesh.topology.service("far")

    def change(view: dict) -> None:
        of(view["services"], "far")["ports"] = {"80": 0}
        of(view["workloads"], "far")["services"] = {f"default/{service.hostname}": {"80": 9000}}

    with mesh.edited(change):
        caller, authority = mesh.identity("outsider"), f"{service.hostname}:80"
        with mesh.hbone("outsider", mesh.ip("far"), authority, caller) as (status, talk):
            assert (status, talk(b"named")) == (200, b"named")
        assert mesh.echo("client", mesh.vip("far"), 80) == b"hello"


def test_trust_domain_mismatch_rejected(mesh: World) -> None:
    """Another trust domain's identity, also when the mesh's own CA signed it: the end shows on the first read."""
    files = mesh.credentials(Identity("elsewhere", "default", "client"))
    told = mesh.logs("ztunnel.node-b", "inbound", "elsewhere", "trust domain")
    with told, mesh.secured("outsider", mesh.ip("far"), files) as sock:
        assert read_all(sock) == b""


def test_another_ca_is_rejected(mesh: World) -> None:
    """The right name from a CA that the mesh does not know."""
    stranger = CertificateAuthority(now=time.time())
    with mesh.secured("outsider", mesh.ip("far"), mesh.credentials(mesh.identity("client"), stranger)) as sock:
        assert read_all(sock) == b""


def test_no_certificate_is_rejected(mesh: World) -> None:
    """A client certificate is obligatory."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(mesh.connect("outsider", mesh.ip("far"), 15008)) as sock:
        assert read_all(sock) == b""


def test_wrong_server_identity_is_refused_before_any_byte(mesh: World) -> None:
    """The client's ztunnel expects another account at that address than the one which answers."""

    def change(view: dict) -> None:
        of(view["workloads"], "web")["serviceAccount"] = "someone-else"

    # Only the client's node is told so: the server's ztunnel still acts for the true account.
    told = mesh.logs("ztunnel.node-a", "outbound", str(mesh.identity("web")), "is not expected", "someone-else")
    before = mesh.log("ztunnel.node-b")
    with mesh.edited(change, "ztunnel.node-a"), told:
        assert mesh.echo("client", mesh.ip("web"), 8080, b"GET / HTTP/1.1\r\n\r\n") == b""
    assert f"{mesh.ip('web')}:8080" not in mesh.log("ztunnel.node-b")[len(before) :]


@pytest.mark.parametrize("caller", ["client", "outsider"])
def test_policy_change_closes_a_live_connection(mesh: World, caller: str) -> None:
    """What is now denied is closed at once, what is not goes on: over HBONE (client) and plaintext (outsider)."""
    far = mesh.ip("far")
    with mesh.connect(caller, far, 9000) as doomed, mesh.connect("near", far, 9000) as spared:
        for sock in (doomed, spared):
            sock.sendall(b"open")
            assert sock.recv(10) == b"open"
        change = adding(policy("only-near", "Allow", [str(mesh.identity("near"))]))
        with mesh.logs("ztunnel.node-b", "inbound", "connection closed due to policy change"), mesh.edited(change):
            with contextlib.suppress(ConnectionResetError):
                assert doomed.recv(10) == b""
            spared.sendall(b"still")
            assert spared.recv(10) == b"still"
