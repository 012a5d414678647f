"""What a client's sidecar does with a call: protocol, route, balance, limits of time, retries, faults, metrics, log."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable

import pytest

from testbed.model.topology import Topology
from tests.labs import needs_root
from tests.namespaced.sidecars import SidecarWorld, peer, routes, traffic
from tests.namespaced.worlds import wait_for

pytestmark = [pytest.mark.root, needs_root]

BOTH, WEB, TESTER = (f"{name}.default.svc.cluster.local" for name in ("both", "web", "tester"))
SUBSETS = {"subsets": [{"name": v, "labels": {"version": v}} for v in ("v1", "v2")]}


def to(host: str, subset: str = "", weight: int | None = None) -> dict:
    destination = {"host": host, **({"subset": subset} if subset else {})}
    return {"destination": destination, **({} if weight is None else {"weight": weight})}


def test_requests_of_one_connection_are_spread(sidecars: SidecarWorld) -> None:
    """Balancing is per request, not per connection."""
    with sidecars.keep_alive("client", sidecars.vip("both"), 80, "both") as ask:
        assert {ask().served_by for _ in range(40)} == {"web", "web2"}


def test_weights(sidecars: SidecarWorld) -> None:
    """All of the weight on one subset: no request goes to the other; half and half: both are seen."""
    for weights, seen in (((100, 0), {"web"}), ((0, 100), {"web2"}), ((50, 50), {"web", "web2"})):
        rule = {"route": [to(BOTH, f"v{n + 1}", weight) for n, weight in enumerate(weights)]}
        with (
            sidecars.resources(routes("both", rule), traffic(BOTH, {}, **SUBSETS)),
            sidecars.keep_alive("client", sidecars.vip("both"), 80, "both") as ask,
        ):
            assert {ask().served_by for _ in range(40)} == seen


def test_a_header_chooses_the_subset(sidecars: SidecarWorld) -> None:
    """The first rule that matches, by header and path; what matches none gets the last."""
    first = {
        "match": [{"headers": {"x-version": {"exact": "2"}}, "uri": {"prefix": "/a"}}], "route": [to(BOTH, "v2")]
    }  # fmt: skip
    with sidecars.resources(routes("both", first, {"route": [to(BOTH, "v1")]}), traffic(BOTH, {}, **SUBSETS)):
        assert sidecars.http("client", "both", "/a", headers={"x-version": "2"}).served_by == "web2"
        assert sidecars.http("client", "both", "/b", headers={"x-version": "2"}).served_by == "web"
        assert sidecars.http("client", "both", "/a").served_by == "web"


def test_a_client_without_a_sidecar_knows_no_routes(sidecars: SidecarWorld) -> None:
    """Routes are the client's: an outsider's call meets whatever the service has."""
    abort = routes("web", {"fault": {"abort": {"httpStatus": 418, "percentage": {"value": 100}}}, "route": [to(WEB)]})
    with sidecars.resources(abort):
        assert sidecars.http("client", "web").status == 418
        assert sidecars.http("outsider", "web").status == 200


def test_a_timeout_answers_504(sidecars: SidecarWorld) -> None:
    """The server would take 3 s, the route allows 0.2 s."""
    with sidecars.resources(routes("web", {"timeout": "0.2s", "route": [to(WEB)]})):
        began_s = time.monotonic()
        answer = sidecars.http("client", "web", "/?delay_ms=3000")
        assert (answer.status, answer.body) == (504, b"upstream request timeout")
        assert time.monotonic() - began_s < 2.5
        assert sidecars.http("client", "web").status == 200


def test_retries_and_what_they_are_for(sidecars: SidecarWorld) -> None:
    """With `5xx` a 503 is asked again as often as told; without a word on it, once."""
    answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
    for retries, asked in (({"attempts": 3, "retryOn": "5xx"}, 4), ({"attempts": 0}, 1)):
        rule = {"route": [to(TESTER)], "retries": retries}
        with sidecars.resources(routes("tester", rule)), sidecars.recorder("tester", 8081, answer) as heads:
            assert sidecars.http("client", "tester").status == 503
            assert heads.qsize() == asked


def test_a_dead_endpoint_is_passed_over(sidecars: SidecarWorld) -> None:
    """By default a refused connection is tried elsewhere: of two endpoints with one dead every request is served.

    That is one where nobody listens, the sidecar included; a sidecar whose application is dead says 503 itself, which
    Istio's default no longer retries.
    """

    def with_nobody(topology: Topology) -> Topology:
        services = tuple(
            dataclasses.replace(s, endpoints=("web", "outsider")) if s.name == "both" else s for s in topology.services
        )
        return dataclasses.replace(topology, services=services)

    with sidecars.resources(change=with_nobody):
        assert {sidecars.http("client", "both").status for _ in range(20)} == {200}


def test_faults(sidecars: SidecarWorld) -> None:
    """A delay is waited out and then served; without a percentage nothing happens (Istio's 0 %)."""
    delay = {"fault": {"delay": {"fixedDelay": "0.6s", "percentage": {"value": 100}}}, "route": [to(WEB)]}
    nothing = {"fault": {"abort": {"httpStatus": 418}}, "route": [to(WEB)]}
    with sidecars.resources(routes("web", delay)):
        began_s = time.monotonic()
        assert sidecars.http("client", "web").status == 200
        assert time.monotonic() - began_s >= 0.6
    with sidecars.resources(routes("web", nothing)):
        assert sidecars.http("client", "web").status == 200


def test_traffic_distribution_keeps_to_the_zone(sidecars: SidecarWorld) -> None:
    """`prefer-same-node`: of two endpoints on two nodes each client meets the one on its own."""

    def near(topology: Topology) -> Topology:
        workloads = tuple(dataclasses.replace(w, node="node-a") if w.name == "web2" else w for w in topology.workloads)
        services = tuple(
            dataclasses.replace(s, traffic_distribution="prefer-same-node") if s.name == "both" else s
            for s in topology.services
        )
        return dataclasses.replace(topology, workloads=workloads, services=services)

    with sidecars.resources(change=near):  # only the view says that web2 has moved
        assert {sidecars.http("client", "both").served_by for _ in range(20)} == {"web2"}
        assert {sidecars.http("web", "both").served_by for _ in range(20)} == {"web"}


def test_a_route_may_lead_to_another_service(sidecars: SidecarWorld) -> None:
    """Host stays as the client wrote it; the endpoint is the other service's."""
    with sidecars.resources(routes("plain", {"route": [to(WEB)]})):
        assert sidecars.http("client", "plain").served_by == "web"


# -- protocols


def test_a_server_that_speaks_first(sidecars: SidecarWorld) -> None:
    """Between sidecars, at a port declared tcp: TLS is the client's first byte, so the banner comes."""

    def banner(sock: socket.socket) -> None:
        sock.sendall(b"220 ready")
        sock.recv(1)

    with sidecars.serve("tester", 3306, banner):
        with sidecars.connect("client", sidecars.vip("tester"), 3306) as sock:
            assert sock.recv(100) == b"220 ready"
        with sidecars.connect("outsider", sidecars.vip("tester"), 3306, timeout_s=0.4) as sock:
            with pytest.raises(TimeoutError):  # PERMISSIVE waits to see whether TLS comes: Istio's documented limit
                sock.recv(100)
            sock.settimeout(4)
            sock.sendall(b"\x00")
            assert sock.recv(100) == b"220 ready"
        with (
            sidecars.resources(peer("DISABLE", app="tester")),
            sidecars.connect("outsider", sidecars.vip("tester"), 3306) as sock,
        ):
            assert sock.recv(100) == b"220 ready"


@pytest.mark.parametrize("source", ["client", "outsider"])
def test_a_port_that_says_nothing_is_sniffed(sidecars: SidecarWorld, source: str) -> None:
    """The same port carries HTTP, counted as requests, and other bytes, counted as connections."""

    def unnamed(topology: Topology) -> Topology:
        services = tuple(
            dataclasses.replace(s, ports=tuple(dataclasses.replace(p, protocol="") for p in s.ports))
            if s.name == "sniffed"
            else s
            for s in topology.services
        )
        return dataclasses.replace(topology, services=services)

    def upper(sock: socket.socket) -> None:
        data = sock.recv(1000)
        if data.startswith(b"GET"):
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            sock.recv(1)
            return
        sock.sendall(data.upper())

    with sidecars.resources(change=unnamed), sidecars.serve("tester", 7000, upper):
        with sidecars.counts("tester", "istio_requests_total", reporter="destination"):
            assert sidecars.http(source, "sniffed", port=7000).status == 200
        with sidecars.counts("tester", "istio_tcp_connections_opened_total", reporter="destination"):
            assert sidecars.echo(source, sidecars.vip("sniffed"), 7000, b"\x00raw") == b"\x00RAW"


@pytest.mark.parametrize("side", ["client", "server"])
def test_tcp_is_half_closed_through_mutual_tls(sidecars: SidecarWorld, side: str) -> None:
    """Who has said all it has to say may still listen: FIN becomes close_notify and FIN again, either way round."""

    def server(sock: socket.socket) -> None:
        if side == "server":
            sock.sendall(b"banner")
            sock.shutdown(socket.SHUT_WR)
            heard.append(_all(sock))
            return
        got = _all(sock)
        time.sleep(0.2)
        sock.sendall(got * 2)

    heard: list[bytes] = []
    with sidecars.serve("tester", 3306, server), sidecars.connect("client", sidecars.vip("tester"), 3306) as sock:
        if side == "client":
            sock.sendall(b"question")
            sock.shutdown(socket.SHUT_WR)
            assert _all(sock) == b"question" * 2
            return
        assert _all(sock) == b"banner"
        time.sleep(0.2)
        sock.sendall(b"late")
        sock.shutdown(socket.SHUT_WR)
        wait_for(lambda: heard, "the server hears what came late")
        assert heard == [b"late"]


def _all(sock: socket.socket) -> bytes:
    parts = b""
    while part := sock.recv(65536):
        parts += part
    return parts


def test_bulk_through_mutual_tls_arrives_whole(sidecars: SidecarWorld) -> None:
    """Eight megabytes there and back, with a client that reads late."""
    message = bytes(range(256)) * 4096 * 8

    def server(sock: socket.socket) -> None:
        got = 0
        while got < len(message):
            part = sock.recv(1 << 16)
            got += len(part)
        sock.sendall(message)

    with sidecars.serve("tester", 3306, server), sidecars.connect("client", sidecars.vip("tester"), 3306) as sock:
        sock.sendall(message)
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.5)
        assert _all(sock) == message


# -- views, telemetry


def test_a_new_view_moves_the_next_request(sidecars: SidecarWorld) -> None:
    """Endpoints come and go; an open connection of the application's notices nothing."""

    def only(name: str) -> Callable[[Topology], Topology]:
        def change(topology: Topology) -> Topology:
            services = tuple(
                dataclasses.replace(s, endpoints=(name,)) if s.name == "both" else s for s in topology.services
            )
            return dataclasses.replace(topology, services=services)

        return change

    with sidecars.keep_alive("client", sidecars.vip("both"), 80, "both") as ask:
        for name in ("web", "web2", "web"):
            with sidecars.resources(change=only(name)):
                assert {ask().served_by for _ in range(6)} == {name}


def test_a_view_that_cannot_be_read_changes_nothing(sidecars: SidecarWorld) -> None:
    """The old one stays, and the log says so."""
    proxy = next(p for p in sidecars.deployment.placement.proxies if p.name == "sidecar.client")
    try:
        with sidecars.logs("sidecar.client", "new view refused"):
            sidecars.deployment.configure(proxy, {"workloads": 7})
        assert sidecars.http("client", "web").status == 200
    finally:
        sidecars.deployment.configure(proxy, proxy.view)


@pytest.mark.parametrize(("reporter", "sandbox"), [("source", "client"), ("destination", "web")])
def test_requests_are_counted_with_istios_names(sidecars: SidecarWorld, reporter: str, sandbox: str) -> None:
    """Both ends name both workloads, their principals and the service; only the server's end tells of mTLS."""
    labels = {
        "reporter": reporter, "source_workload": "client", "source_workload_namespace": "default",
        "source_principal": str(sidecars.identity("client")),
        "destination_workload": "web", "destination_principal": str(sidecars.identity("web")),
        "destination_service": WEB, "destination_service_name": "web", "destination_version": "v1",
        "request_protocol": "http", "response_code": "200", "response_flags": "-",
        "connection_security_policy": "mutual_tls" if reporter == "destination" else "unknown",
    }  # fmt: skip
    with (
        sidecars.counts(sandbox, "istio_requests_total", **labels),
        sidecars.counts(sandbox, "istio_request_duration_milliseconds_count", **labels),
        sidecars.counts(sandbox, "istio_response_bytes_sum", by=500, **labels),
    ):
        assert sidecars.http("client", "web", "/?size=500").status == 200


@pytest.mark.parametrize(("reporter", "sandbox"), [("source", "client"), ("destination", "echo")])
def test_connections_are_counted_with_istios_names(sidecars: SidecarWorld, reporter: str, sandbox: str) -> None:
    """The same for TCP; received bytes are the client's, whoever reports."""
    labels = {
        "reporter": reporter, "source_workload": "client", "source_principal": str(sidecars.identity("client")),
        "destination_workload": "echo", "destination_principal": str(sidecars.identity("echo")),
        "destination_service_name": "echo", "request_protocol": "tcp", "connection_security_policy": "mutual_tls",
    }  # fmt: skip
    with (
        sidecars.counts(sandbox, "istio_tcp_connections_opened_total", **labels),
        sidecars.counts(sandbox, "istio_tcp_connections_closed_total", **labels),
        sidecars.counts(sandbox, "istio_tcp_received_bytes_total", by=7, **labels),
        sidecars.counts(sandbox, "istio_tcp_sent_bytes_total", by=7, **labels),
    ):
        assert sidecars.echo("client", sidecars.vip("echo"), 90, b"7 bytes") == b"7 bytes"


def test_access_log_of_both_ends(sidecars: SidecarWorld) -> None:
    """A line a request in Istio's format: request, status, host, upstream, cluster; at the server the client's name."""
    with (
        sidecars.logs(
            "sidecar.client", '"GET /logged HTTP/1.1" 200', f"outbound|80||{WEB}", f"{sidecars.ip('web')}:8080"
        ),
        sidecars.logs("sidecar.web", '"GET /logged HTTP/1.1" 200', str(sidecars.identity("client"))),
    ):
        sidecars.http("client", "web", "/logged")
    with sidecars.logs("sidecar.echo", '"- - -" 0', " 9 9 ", str(sidecars.identity("client"))):
        sidecars.echo("client", sidecars.vip("echo"), 90, b"for a log")
