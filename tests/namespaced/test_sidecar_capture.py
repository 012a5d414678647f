"""What a sidecar captures and what it leaves alone, and where what it cannot name goes."""

from __future__ import annotations

import socket

import pytest

from tests.labs import needs_root
from tests.namespaced.sidecars import SidecarWorld, get, listening, peer
from tests.namespaced.worlds import read_all

pytestmark = [pytest.mark.root, needs_root]


@pytest.mark.parametrize(
    ("port", "path"), [(15020, "/stats/prometheus"), (15021, "/healthz/ready"), (15090, "/stats/prometheus")]
)
def test_ports_of_the_proxy_are_reached_without_it(sidecars: SidecarWorld, port: int, path: str) -> None:
    """A kubelet or a Prometheus elsewhere gets readiness and metrics past STRICT; it never gets admin."""
    with sidecars.resources(peer("STRICT", namespace="istio-system")):
        assert get(sidecars, "outsider", sidecars.ip("web"), port, path)[0] == 200
        assert get(sidecars, "outsider", sidecars.ip("web"), 15000, "/config_dump")[0] == 0


def test_the_applications_loopback_is_its_own(sidecars: SidecarWorld) -> None:
    """A call to 127.0.0.1 inside the pod meets the application directly; the sidecar counts nothing."""
    with sidecars.counts("web", "istio_requests_total", by=0):
        assert sidecars.http("web", "", address="127.0.0.1", port=8080).fields["x-peer-address"] == "127.0.0.1"


def test_a_call_to_itself_by_the_service_address(sidecars: SidecarWorld) -> None:
    """It leaves by the outbound side and comes back by the inbound one, with mTLS and its own identity."""
    web = str(sidecars.identity("web"))
    with (
        sidecars.counts("web", "istio_requests_total", reporter="source"),
        sidecars.counts("web", "istio_requests_total", reporter="destination", source_principal=web),
    ):
        answer = sidecars.http("web", "web")
    assert (answer.status, answer.served_by) == (200, "web")


def test_the_application_is_called_from_127_0_0_6(sidecars: SidecarWorld) -> None:
    """Istio's source of inbound connections, which no rule captures again; each request is one request to it."""
    with sidecars.counts("web", "istio_requests_total", reporter="destination"):
        assert sidecars.http("client", "web").fields["x-peer-address"] == "127.0.0.6"
    assert sidecars.counted("web", "istio_requests_total", reporter="source", destination_workload="unknown") == 0


@pytest.mark.parametrize("port", [15001, 15006])
@pytest.mark.parametrize("source", ["outsider", "client", "web"])
def test_a_direct_call_to_a_capturing_port_ends(sidecars: SidecarWorld, source: str, port: int) -> None:
    """From outside, from the mesh and from the own pod: no byte comes back, and no loop begins."""
    assert sidecars.echo(source, sidecars.ip("web"), port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n") == b""


def test_hbone_is_not_listened_to_unless_asked(sidecars: SidecarWorld) -> None:
    """15008 is left alone by the capture rules, and without the option nobody is there."""
    assert not listening(sidecars, "outsider", sidecars.ip("web"), 15008)


def test_a_pod_called_by_its_address_gets_plain_bytes(sidecars: SidecarWorld) -> None:
    """Istio's PassthroughCluster: no mTLS, no balancing; PERMISSIVE takes it, without an identity."""
    with sidecars.counts("web", "istio_requests_total", connection_security_policy="none", source_principal="unknown"):
        assert sidecars.http("client", "", address=sidecars.ip("web"), port=8080).served_by == "web"


def test_destinations_nobody_knows_are_passed_through(sidecars: SidecarWorld) -> None:
    """ALLOW_ANY: TCP to a stranger's port, and HTTP for a strange host on a port of services."""
    sidecars_ip = sidecars.ip("outsider")

    def banner(sock: socket.socket) -> None:
        sock.sendall(b"stranger")

    with sidecars.serve("outsider", 4444, banner), sidecars.connect("client", sidecars_ip, 4444) as sock:
        assert read_all(sock) == b"stranger"
    with sidecars.recorder("outsider", 80) as heads:
        answer = sidecars.http("client", "", address=sidecars_ip, headers={"host": "nobody.example"})
        assert (answer.status, answer.body) == (200, b"ok")
        assert b"host: nobody.example" in heads.get(timeout=2).lower()


def test_other_bytes_on_an_http_port_are_passed_through(sidecars: SidecarWorld) -> None:
    """Istio's HTTP listener for any address leaves what is not HTTP to where it was going."""

    def echo(sock: socket.socket) -> None:
        sock.sendall(sock.recv(100))

    with sidecars.serve("outsider", 80, echo), sidecars.connect("client", sidecars.ip("outsider"), 80) as sock:
        sock.sendall(b"\x00\x01binary")
        assert read_all(sock) == b"\x00\x01binary"
