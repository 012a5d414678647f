"""Which calls pass a waypoint and which one, what it says to those it does not stand before, and who is seen where."""

from __future__ import annotations

import socket

import pytest

from testbed.model.identity import Identity
from tests.labs import needs_root
from tests.namespaced.sidecars import peer
from tests.namespaced.waypoints import WaypointWorld
from tests.namespaced.worlds import of, policy, read_all

pytestmark = [pytest.mark.root, needs_root]
SHARED = ("shared", "shared-2")
ALL = (*SHARED, "lone", "own", "whole")


def test_a_call_to_a_service_passes_its_waypoint(ambient: WaypointWorld) -> None:
    """Once, and is answered by an endpoint."""
    with ambient.through(*SHARED), ambient.through(*ALL):
        answer = ambient.http("client", "web")
    assert (answer.status, answer.served_by) == (200, "web")


def test_several_services_share_a_waypoint(ambient: WaypointWorld) -> None:
    """One pair of replicas for all that name it; metrics tell the services apart."""
    for service in ("web", "both", "mixed", "plain"):
        with ambient.through(*SHARED, destination_service_name=service, reporter="waypoint"):
            assert ambient.http("client", service).status == 200


def test_clients_are_spread_over_the_replicas(ambient: WaypointWorld) -> None:
    """The client's ztunnel draws one for each connection."""
    before = [ambient.counted(pod, "istio_requests_total") for pod in SHARED]
    for _ in range(24):
        assert ambient.http("client", "web").status == 200
    with ambient.through(*SHARED, by=0):
        pass
    after = [ambient.counted(pod, "istio_requests_total") for pod in SHARED]
    assert sum(after) - sum(before) == 24
    assert all(b > a for a, b in zip(before, after, strict=True))


def test_services_of_one_namespace_have_waypoints_of_their_own(ambient: WaypointWorld) -> None:
    """A second waypoint serves its own service, and the first does not see the call."""
    with ambient.through("lone"), ambient.through(*SHARED, by=0):
        assert ambient.http("client", "alone").served_by == "web"


@pytest.mark.parametrize("service", ["direct", "vault"])
def test_services_without_a_waypoint_are_called_directly(ambient: WaypointWorld, service: str) -> None:
    """Also where a waypoint stands before the endpoint's own address: that one is for the other kind of traffic."""
    with ambient.through(*ALL, by=0):
        assert ambient.http("client", service).status == 200


def test_a_workloads_own_address_has_its_waypoint(ambient: WaypointWorld) -> None:
    """`waypoint-for: workload`: HTTP is found out from the bytes, and goes on to that workload alone."""
    with ambient.through("own", destination_workload="vault", destination_service_name="unknown", reporter="waypoint"):
        answer = ambient.http("client", "", address=ambient.ip("vault"), port=8080)
    assert (answer.status, answer.served_by) == (200, "vault")


def test_a_workload_behind_a_service_waypoint_is_open_by_its_own_address(ambient: WaypointWorld) -> None:
    """Pod-addressed traffic never meets a service's waypoint (facts 7, row 5)."""
    with ambient.through(*ALL, by=0):
        assert ambient.http("client", "", address=ambient.ip("web"), port=8080).served_by == "web"


@pytest.mark.parametrize("by_address", [False, True])
def test_a_namespaces_waypoint_is_for_all_of_it(ambient: WaypointWorld, by_address: bool) -> None:
    """`waypoint-for: all`: by the service and by the workload's own address."""
    with ambient.through("whole"):
        if by_address:
            answer = ambient.http("client", "", address=ambient.ip("member"), port=8080)
        else:
            answer = ambient.http("client", "member")
    assert (answer.status, answer.served_by) == (200, "member")


def test_clients_outside_the_mesh_go_round_it(ambient: WaypointWorld) -> None:
    """Without a ztunnel nobody leads a call to the waypoint (facts 7, row 6)."""
    with ambient.through(*ALL, by=0):
        assert ambient.http("outsider", "web").status == 200


# -- authorities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "port", "status"),
    [
        ("vip:web", 80, 200),
        ("web.default.svc.cluster.local", 80, 200),
        ("WEB.default.svc.cluster.local", 80, 200),
        ("vip:web", 81, 404),
        ("vip:alone", 80, 404),
        ("alone.default.svc.cluster.local", 80, 404),
        ("nobody.default.svc.cluster.local", 80, 404),
        ("web", 80, 404),
        ("10.96.77.77", 80, 404),
        ("ip:web", 8080, 404),
        ("ip:vault", 8080, 404),
        ("pod:shared", 15008, 404),
        ("pod:shared", 15000, 404),
        ("127.0.0.1", 15000, 404),
        ("vip:web", 0, 400),
    ],
)
def test_what_an_authority_means(ambient: WaypointWorld, host: str, port: int, status: int) -> None:
    """Its own services by address or whole name; of others, of itself and of workloads it knows nothing."""
    kind, _, name = host.rpartition(":")
    address = {"vip": ambient.vip, "ip": ambient.ip, "pod": ambient.pod}.get(kind, lambda text: text)(name)
    identity = ambient.identity("client")
    assert ambient.connect_status("outsider", ambient.pod("shared"), f"{address}:{port}", identity) == status


@pytest.mark.parametrize(("port", "status"), [(8080, 200), (9, 200), (15008, 404), (15001, 404)])
def test_an_authority_at_a_workloads_waypoint(ambient: WaypointWorld, port: int, status: int) -> None:
    """Any port of its workload but the proxies' own."""
    authority = f"{ambient.ip('vault')}:{port}"
    assert ambient.connect_status("outsider", ambient.pod("own"), authority, ambient.identity("client")) == status


def test_a_refused_tunnel_leaves_the_connection_usable(ambient: WaypointWorld) -> None:
    """The next CONNECT by name is served, on the client's own identity."""
    with ambient.hbone(
        "outsider", ambient.pod("shared"), "web.default.svc.cluster.local:80", ambient.identity("client")
    ) as (status, talk):
        assert status == 200
        assert talk(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("credentials", ["none", "foreign"])
def test_strangers_get_no_tunnel(ambient: WaypointWorld, credentials: str) -> None:
    """Always mTLS, PERMISSIVE or not: plaintext gets no byte, another trust domain no status."""
    if credentials == "none":
        assert ambient.echo("outsider", ambient.pod("shared"), 15008, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n") == b""
        return
    stranger = Identity("elsewhere.example", "default", "client")
    with pytest.raises((OSError, AssertionError)):
        status = ambient.connect_status("outsider", ambient.pod("shared"), f"{ambient.vip('web')}:80", stranger)
        assert status != 0


# -- who is seen ------------------------------------------------------------------------------------------------------


def test_the_application_sees_the_waypoints_address(ambient: WaypointWorld) -> None:
    """And not the client's (facts 7, row 8)."""
    seen = ambient.http("client", "web").fields["x-peer-address"]
    assert seen in (ambient.pod("shared"), ambient.pod("shared-2"))


def test_the_destinations_ztunnel_sees_the_waypoint(ambient: WaypointWorld) -> None:
    """As the source, by identity and by workload; the client's never reached it this way."""
    assert ambient.http("client", "alone").status == 200
    opened = "istio_tcp_connections_opened_total"
    labels = {"reporter": "destination", "source_principal": str(ambient.waypoint_identity("lone"))}
    assert ambient.counted("node-b", opened, source_workload="lone", destination_workload="web", **labels) >= 1
    assert ambient.counted("node-b", opened, source_workload="client", **labels) == 0


def test_an_l4_policy_may_admit_only_the_waypoint(ambient: WaypointWorld) -> None:
    """The remedy against going round it: calls through it pass, the client's own do not."""
    only = policy("only-waypoint", "Allow", [str(ambient.waypoint_identity("shared"))])

    def change(view: dict) -> None:
        view["policies"].append({**only, "scope": "WorkloadSelector"})
        of(view["workloads"], "web")["authorizationPolicies"] = ["default/only-waypoint"]

    with ambient.edited(change, "ztunnel.node-a", "ztunnel.node-b"):
        assert ambient.http("client", "web").status == 200
        assert ambient.http("client", "direct").status == 0
        assert ambient.http("client", "alone").status == 503  # another waypoint is no better than a client


def test_an_l4_policy_for_the_client_blocks_the_waypoint(ambient: WaypointWorld) -> None:
    """Why such policies have to move to the waypoint when one is added."""
    only = policy("only-client", "Allow", [str(ambient.identity("client"))])

    def change(view: dict) -> None:
        view["policies"].append({**only, "scope": "WorkloadSelector"})
        of(view["workloads"], "web")["authorizationPolicies"] = ["default/only-client"]

    with ambient.edited(change, "ztunnel.node-a", "ztunnel.node-b"):
        assert ambient.http("client", "direct").status == 200
        assert ambient.http("client", "web").status == 503


def test_endpoints_outside_the_mesh_are_dialled_in_the_clear(ambient: WaypointWorld) -> None:
    """As of a service with endpoints of both kinds."""
    assert ambient.http("client", "plain").served_by == "plain"
    assert {ambient.http("client", "mixed").served_by for _ in range(16)} == {"web", "plain"}


def test_an_endpoint_with_a_sidecar(mixed: WaypointWorld) -> None:
    """By HBONE if the sidecar listens there, and it sees the waypoint; else in the clear, which STRICT refuses."""
    tunnels = "listens_hbone" in mixed.deployment.placement.plane
    seen = {"source_principal": str(mixed.waypoint_identity("way")) if tunnels else "unknown"}
    with mixed.through("way"), mixed.through("web", reporter="destination", **seen):
        assert mixed.http("client", "web").served_by == "web"
    with mixed.resources(peer("STRICT", namespace="istio-system")), mixed.through("way"):
        assert mixed.http("client", "web").status == (200 if tunnels else 503)


def test_a_waypoint_before_its_own_address_ends_in_an_error(ambient: WaypointWorld) -> None:
    """A service whose endpoint is its waypoint: it refuses its own tunnel, and the client hears 503."""

    def change(view: dict) -> None:
        for pod in SHARED:
            of(view["workloads"], pod)["services"]["default/web.default.svc.cluster.local"] = {"80": 15008}
        of(view["workloads"], "web")["services"].pop("default/web.default.svc.cluster.local")

    with ambient.edited(change):
        assert ambient.http("client", "web").status == 503


# -- what is not HTTP -------------------------------------------------------------------------------------------------


def test_declared_tcp_is_relayed(ambient: WaypointWorld) -> None:
    """Both directions and half-close; counted by the waypoint as TCP, under client and endpoint."""
    labels = {
        "reporter": "waypoint", "source_workload": "client", "source_principal": str(ambient.identity("client")),
        "destination_workload": "echo", "destination_service_name": "echo", "connection_security_policy": "mutual_tls",
    }  # fmt: skip
    with (
        ambient.through(*SHARED, metric="istio_tcp_connections_closed_total", **labels),
        ambient.through(*SHARED, by=5, metric="istio_tcp_received_bytes_total", **labels),
    ):
        assert ambient.echo("client", ambient.vip("echo"), 90) == b"hello"


def test_a_server_that_speaks_first_on_a_declared_port(ambient: WaypointWorld) -> None:
    """Nothing is waited for where the protocol is declared."""

    def banner(sock: socket.socket) -> None:
        sock.sendall(b"220 ready\r\n")

    with ambient.serve("tester", 3306, banner), ambient.connect("client", ambient.vip("tester"), 3306) as sock:
        assert read_all(sock) == b"220 ready\r\n"


def test_a_server_that_speaks_first_on_an_undeclared_port_waits(ambient: WaypointWorld) -> None:
    """Sniffing waits for the client, for ever by Istio's default (facts 7, row 17); a client's word ends it."""

    def banner(sock: socket.socket) -> None:
        sock.sendall(b"220 ready\r\n")
        sock.recv(10)

    with ambient.serve("tester", 7000, banner), ambient.connect("client", ambient.vip("sniffed"), 7000) as sock:
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.recv(20)
        sock.settimeout(8)
        sock.sendall(b"\x00quit")
        assert sock.recv(20) == b"220 ready\r\n"


def test_http_on_an_undeclared_port_is_found_out(ambient: WaypointWorld) -> None:
    """And treated as HTTP: it is counted as a request."""
    with ambient.recorder("tester", 7000) as heads, ambient.through(*SHARED, destination_service_name="sniffed"):
        assert ambient.http("client", "sniffed", port=7000).body == b"ok"
        assert heads.get(timeout=3).startswith(b"GET / HTTP/1.1\r\n")


def test_other_bytes_on_an_undeclared_port_are_relayed(ambient: WaypointWorld) -> None:
    """What cannot be HTTP goes on as it came."""

    def echo(sock: socket.socket) -> None:
        while data := sock.recv(65536):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    with (
        ambient.serve("tester", 7000, echo),
        ambient.through(*SHARED, metric="istio_tcp_connections_closed_total", destination_service_name="sniffed"),
    ):
        assert ambient.echo("client", ambient.vip("sniffed"), 7000, b"\x01\x02\x03") == b"\x01\x02\x03"


@pytest.mark.parametrize("data", [b"\x01\x02\x03\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"hello\r\n\r\n"])
def test_not_http_on_an_http_port_is_refused(ambient: WaypointWorld, data: bytes) -> None:
    """The declaration is believed: relayed as TCP, these bytes would pass by every policy about paths."""
    seen: list[bytes] = []
    with ambient.serve("tester", 8081, lambda sock: seen.append(sock.recv(100))):
        assert ambient.echo("client", ambient.vip("tester"), 80, data).startswith(b"HTTP/1.1 400")
    assert seen == []


def test_tcp_to_a_port_where_nobody_listens_ends(ambient: WaypointWorld) -> None:
    """The client's connect() has long succeeded; it sees an end without a byte, and the waypoint counts a failure."""
    with ambient.through(
        *SHARED,
        metric="istio_tcp_connections_failed_total",
        destination_service_name="tester",
        response_flags="CONNECT",
    ):
        assert ambient.echo("client", ambient.vip("tester"), 3306) == b""
