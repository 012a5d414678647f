"""Who must prove what to a sidecar, and what a sidecar asks of whom it calls."""

from __future__ import annotations

import dataclasses
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import h2.config
import h2.connection
import pytest

from planes.l7.clienthello import ClientHello, read_client_hello
from testbed.model.identity import Identity
from testbed.model.placement import Placement
from testbed.model.topology import Topology
from testbed.pki import CERTIFICATE_FILE, KEY_FILE, ROOTS_FILE, CertificateAuthority
from tests.labs import needs_root
from tests.namespaced import worlds
from tests.namespaced.sidecars import SidecarWorld, fields_of, peer, traffic
from tests.namespaced.worlds import read_all, wait_for

pytestmark = [pytest.mark.root, needs_root]

MESH, WORKLOAD, PORT, NAMESPACE = "mesh", "workload", "port", "namespace"


def at(level: str, mode: str, app: str, port: int) -> str:
    if level == MESH:
        return peer(mode, namespace="istio-system")
    if level == NAMESPACE:
        return peer(mode)
    if level == WORKLOAD:
        return peer(mode, app=app)
    return peer("PERMISSIVE", app=app, ports={port: mode})


@pytest.mark.parametrize("level", [MESH, NAMESPACE, WORKLOAD, PORT])
@pytest.mark.parametrize(
    ("mode", "outsider_passes", "mtls"),
    [("STRICT", False, "mutual_tls"), ("PERMISSIVE", True, "mutual_tls"), ("DISABLE", True, "none")],
)
def test_http_under_each_mode_at_each_level(
    sidecars: SidecarWorld, level: str, mode: str, outsider_passes: bool, mtls: str
) -> None:
    """A client with a sidecar always passes, by mutual TLS unless that is off; an outsider does not pass STRICT."""
    with sidecars.resources(at(level, mode, "web", 8080)):
        with sidecars.counts(
            "web", "istio_requests_total", reporter="destination", connection_security_policy=mtls,
            source_workload="client",
        ):  # fmt: skip
            assert sidecars.http("client", "web").status == 200
        assert sidecars.http("outsider", "web").status == (200 if outsider_passes else 0)


@pytest.mark.parametrize("level", [MESH, NAMESPACE, WORKLOAD, PORT])
@pytest.mark.parametrize(("mode", "outsider_passes"), [("STRICT", False), ("PERMISSIVE", True), ("DISABLE", True)])
def test_tcp_under_each_mode_at_each_level(
    sidecars: SidecarWorld, level: str, mode: str, outsider_passes: bool
) -> None:
    """The same for bytes that are not HTTP."""
    with sidecars.resources(at(level, mode, "echo", 9000)):
        assert sidecars.echo("client", sidecars.vip("echo"), 90) == b"hello"
        assert sidecars.echo("outsider", sidecars.vip("echo"), 90) == (b"hello" if outsider_passes else b"")


def test_the_narrower_policy_wins(sidecars: SidecarWorld) -> None:
    """STRICT in the mesh, PERMISSIVE for one workload: only that one takes an outsider."""
    with sidecars.resources(peer("STRICT", namespace="istio-system"), peer("PERMISSIVE", app="web")):
        assert sidecars.http("outsider", "web").status == 200
        assert sidecars.echo("outsider", sidecars.vip("echo"), 90) == b""


def test_each_endpoint_gets_what_it_takes(sidecars: SidecarWorld) -> None:
    """Automatic mTLS: of one service's endpoints, the one with a sidecar is called by mTLS and the other plainly."""
    client = str(sidecars.identity("client"))
    seen = set()
    with sidecars.resources(peer("STRICT", app="web")):  # plain bytes would be refused
        before = sidecars.counted("web", "istio_requests_total", source_principal=client)
        for _ in range(24):
            answer = sidecars.http("client", "mixed")
            assert answer.status == 200
            seen.add((answer.served_by, answer.fields["x-peer-address"]))
        proven = sidecars.counted("web", "istio_requests_total", source_principal=client) - before
    assert seen == {("web", "127.0.0.6"), ("plain", sidecars.ip("client"))}
    assert proven > 0


@pytest.mark.parametrize(
    ("mode", "security"),
    [("DISABLE", "none"), ("ISTIO_MUTUAL", "mutual_tls")],
)
def test_a_destination_rule_overrides_automatic_mtls(sidecars: SidecarWorld, mode: str, security: str) -> None:
    """DISABLE sends plain bytes to a sidecar; ISTIO_MUTUAL stands also where PeerAuthentication has switched it off."""
    rule = traffic("web.default.svc.cluster.local", {"tls": {"mode": mode}})
    with (
        sidecars.resources(rule),
        sidecars.counts("web", "istio_requests_total", connection_security_policy=security, source_workload="client"),
    ):
        assert sidecars.http("client", "web").status == 200


def test_istio_mutual_towards_a_server_that_speaks_no_tls(sidecars: SidecarWorld) -> None:
    """The rule is believed: the handshake begins, the server hangs up, the caller gets 503."""
    rule = traffic("plain.default.svc.cluster.local", {"tls": {"mode": "ISTIO_MUTUAL"}})
    first: list[bytes] = []

    def handle(sock: socket.socket) -> None:
        first.append(sock.recv(3))

    with (
        sidecars.resources(rule, change=lambda t: retargeted(t, "plain", 8082)),
        sidecars.serve("plain", 8082, handle),
    ):
        answer = sidecars.http("client", "plain")
    assert (answer.status, answer.body[:22]) == (503, b"upstream connect error")
    assert {data[:2] for data in first} == {b"\x16\x03"}


@pytest.mark.parametrize("mode", ["SIMPLE", "MUTUAL"])
@pytest.mark.parametrize("service", ["web", "plain"])
def test_tls_that_is_not_spoken_here_is_refused(sidecars: SidecarWorld, service: str, mode: str) -> None:
    """Whoever asks for TLS gets none of ours, and above all no plain bytes: nobody is even connected to."""
    reached: list[bytes] = []
    rule = traffic(f"{service}.default.svc.cluster.local", {"tls": {"mode": mode}})
    with (
        sidecars.resources(rule, change=lambda t: retargeted(t, service, 8082)),
        sidecars.serve(service, 8082, lambda sock: reached.append(sock.recv(100))),
    ):
        answer = sidecars.http("client", service)
    assert (answer.status, answer.body[:22]) == (503, b"upstream connect error")
    assert reached == []


def retargeted(topology: Topology, service: str, port: int) -> Topology:
    """The service's ports lead to another port of its workloads."""
    services = tuple(
        dataclasses.replace(s, ports=tuple(dataclasses.replace(p, target_port=port) for p in s.ports))
        if s.name == service
        else s
        for s in topology.services
    )
    return dataclasses.replace(topology, services=services)


def test_disable_meets_strict(sidecars: SidecarWorld) -> None:
    """A destination rule that says DISABLE towards a STRICT workload: 503, and the sidecar there closed."""
    rule = traffic("web.default.svc.cluster.local", {"tls": {"mode": "DISABLE"}})
    with sidecars.resources(peer("STRICT", app="web"), rule):
        assert sidecars.http("client", "web").status == 503


# -- handshakes


def stranger(
    world: SidecarWorld, folder: Path, *, version: ssl.TLSVersion, alpn: list[str], ciphers: str = ""
) -> ssl.SSLSocket:
    """TLS to web's application port from outside the mesh, by the standard library."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = context.maximum_version = version
    if ciphers:
        context.set_ciphers(ciphers)
    context.load_cert_chain(folder / CERTIFICATE_FILE, folder / KEY_FILE)
    context.load_verify_locations(folder / ROOTS_FILE)
    context.set_alpn_protocols(alpn)
    return context.wrap_socket(world.connect("outsider", world.ip("web"), 8080))


REQUEST = b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_of_another_make_may_speak_tls_1_2(sidecars: SidecarWorld, version: ssl.TLSVersion) -> None:
    """Envoy's clients end at 1.2 by default; the server answers with the plain name of Istio's protocol."""
    folder = sidecars.credentials(sidecars.identity("outsider"))
    alpn = ["istio-http/1.1", "istio", "http/1.1"]
    with stranger(sidecars, folder, version=version, alpn=alpn) as made:
        assert (made.version(), made.selected_alpn_protocol()) == (version.name.replace("_", "."), "http/1.1")
        made.sendall(REQUEST)
        assert read_all(made).startswith(b"HTTP/1.1 200")


def test_suites_are_ecdhe_with_aes_gcm(sidecars: SidecarWorld) -> None:
    """Of TLS 1.2 no other suite is agreed on."""
    folder = sidecars.credentials(sidecars.identity("outsider"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        stranger(
            sidecars, folder, version=ssl.TLSVersion.TLSv1_2, alpn=["istio"], ciphers="ECDHE-ECDSA-CHACHA20-POLY1305"
        )


def test_a_client_without_a_certificate_is_refused(sidecars: SidecarWorld) -> None:
    """TLS that says it is Istio's must prove an identity."""
    folder = sidecars.credentials(sidecars.identity("outsider"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(folder / ROOTS_FILE)
    context.set_alpn_protocols(["istio"])
    with context.wrap_socket(sidecars.connect("outsider", sidecars.ip("web"), 8080)) as made:
        made.sendall(REQUEST)
        assert read_all(made) == b""


def test_another_trust_domain_is_refused(sidecars: SidecarWorld) -> None:
    """A certificate of our own CA, in the name of a foreign trust domain: no byte comes back."""
    folder = sidecars.credentials(Identity("elsewhere.example", "default", "client"))
    with stranger(sidecars, folder, version=ssl.TLSVersion.TLSv1_3, alpn=["istio"]) as made:
        made.sendall(REQUEST)
        assert read_all(made) == b""


def test_another_authority_is_refused(sidecars: SidecarWorld) -> None:
    """The right name from a CA nobody trusts."""
    foreign = CertificateAuthority(now=time.time(), trust_domain="cluster.local")
    folder = sidecars.credentials(sidecars.identity("client"), foreign)
    with stranger(sidecars, folder, version=ssl.TLSVersion.TLSv1_3, alpn=["istio"]) as made:
        made.sendall(REQUEST)
        assert read_all(made) == b""


def test_the_applications_own_tls_passes(sidecars: SidecarWorld) -> None:
    """Between two TLS ends of applications nobody looks in: from the mesh inside mTLS, from outside as it is."""
    files = sidecars.credentials(Identity("example.org", "its", "own"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files / CERTIFICATE_FILE, files / KEY_FILE)

    def handle(raw: socket.socket) -> None:
        with server.wrap_socket(raw, server_side=True) as made:
            made.sendall(made.recv(100).upper())

    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    with sidecars.serve("tester", 3306, handle):
        for source, mtls in (("client", "mutual_tls"), ("outsider", "unknown")):
            with (
                sidecars.counts(
                    "tester", "istio_tcp_connections_opened_total", reporter="destination",
                    connection_security_policy=mtls,
                ),
                client.wrap_socket(sidecars.connect(source, sidecars.vip("tester"), 3306)) as made,
            ):  # fmt: skip
                made.sendall(b"inner")
                assert made.recv(100) == b"INNER"
                assert b"example.org" in made.getpeercert(True)


# -- what a client offers, seen by a server of the case's own


@pytest.fixture(scope="module")
def deceived(runtime: None) -> Iterator[SidecarWorld]:
    """As `sidecars`, but `plain` (without a proxy) is said to have a sidecar."""

    def place(topology: Topology, placement: Placement) -> Placement:
        for proxy in placement.proxies:
            proxy.options["sidecars"] = [*proxy.options["sidecars"], "Kubernetes//Pod/default/plain"]
        return placement

    with worlds.world(DECEIVED, plane="sidecar", place=place, made=SidecarWorld) as made:
        assert isinstance(made, SidecarWorld)
        made.lab.apps["plain"].signal(9)
        made.lab.apps["plain"].wait(5)
        yield made


DECEIVED = """
name: deceived
nodes: {node-a: {}}
workloads:
  client: {node: node-a, serviceAccount: client}
  plain: {node: node-a, serviceAccount: plain, plane: none, app: {kind: http-echo, ports: [8080, 9000]}}
services:
  plain:
    ports: [{port: 80, targetPort: 8080, protocol: http}, {port: 90, targetPort: 9000, protocol: tcp}]
    workloads: [plain]
"""


@pytest.mark.parametrize(
    ("target", "port", "first", "alpn"),
    [
        (8080, 80, b"GET / HTTP/1.1\r\nhost: plain\r\n\r\n", (b"istio-http/1.1", b"istio", b"http/1.1")),
        (8080, 80, b"", (b"istio-h2", b"istio", b"h2")),
        (9000, 90, b"\x00bytes", (b"istio",)),
    ],
    ids=["http1", "http2", "tcp"],
)
def test_alpn_and_sni_are_istios(
    deceived: SidecarWorld, target: int, port: int, first: bytes, alpn: tuple[bytes, ...]
) -> None:
    """The ClientHello as it comes: protocol list by what is inside, the cluster's name as SNI, TLS 1.3 on offer."""
    hellos: list[bytes] = []

    def handle(sock: socket.socket) -> None:
        data = b""
        while read_client_hello(data) is None:
            data += sock.recv(65536)
        hellos.append(data)

    def parsed() -> list[ClientHello]:
        return [hello for data in hellos if (hello := read_client_hello(data))]

    if not first:
        made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        made.initiate_connection()
        made.send_headers(
            1, [(":method", "GET"), (":scheme", "http"), (":authority", "plain"), (":path", "/")], end_stream=True
        )
        first = made.data_to_send()
    with deceived.serve("plain", target, handle), deceived.connect("client", deceived.vip("plain"), port) as sock:
        sock.sendall(first)
        # What the case before asked for may be tried again here.
        wait_for(lambda: any(hello.alpn == alpn for hello in parsed()), f"a ClientHello with {alpn} comes")
    (hello,) = {hello.server_name: hello for hello in parsed() if hello.alpn == alpn}.values()
    assert hello.server_name == f"outbound_.{port}_._.plain.default.svc.cluster.local"
    assert b"\x03\x04" in hellos[0]


@pytest.mark.parametrize(("account", "passes"), [("plain", True), ("other", False)])
def test_the_servers_identity_must_be_the_endpoints(deceived: SidecarWorld, account: str, passes: bool) -> None:
    """Another workload's certificate, valid in the mesh, is not enough: the client writes nothing and says 503."""
    files = deceived.credentials(Identity("cluster.local", "default", account))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files / CERTIFICATE_FILE, files / KEY_FILE)
    context.set_alpn_protocols(["h2", "http/1.1"])
    received: list[bytes] = []

    def handle(raw: socket.socket) -> None:
        with context.wrap_socket(raw, server_side=True) as made:
            received.append(made.recv(65536))
            made.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    with deceived.serve("plain", 8080, handle):
        answer = deceived.http("client", "plain")
    assert answer.status == (200 if passes else 503)
    assert any(received) is passes


# -- what the application is told


@pytest.mark.parametrize("source", ["client", "outsider"])
def test_the_application_learns_who_called(sidecars: SidecarWorld, source: str) -> None:
    """x-forwarded-client-cert names both ends by mTLS; what a plain client writes there itself is dropped."""
    with sidecars.recorder("tester", 8081) as heads:
        forged = {"x-forwarded-client-cert": "By=x;URI=spiffe://cluster.local/ns/default/sa/admin"}
        assert sidecars.http(source, "tester", headers=forged).status == 200
        told = fields_of(heads.get(timeout=3)).get("x-forwarded-client-cert")
    if source == "outsider":
        assert told is None
        return
    assert told is not None
    parts = dict(part.split("=", 1) for part in told.split(";"))
    assert parts["By"] == str(sidecars.identity("tester"))
    assert parts["URI"] == str(sidecars.identity("client"))
    assert parts["Subject"] == '""'
    assert len(parts["Hash"]) == 64
