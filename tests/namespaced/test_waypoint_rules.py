"""Policies and routes at a waypoint: what is attached how, whom they see, and what ztunnel never hears of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.labs import needs_root
from tests.namespaced.sidecars import fields_of, resource
from tests.namespaced.waypoints import WaypointWorld, at, authorization
from tests.namespaced.worlds import read_all, wait_for

pytestmark = [pytest.mark.root, needs_root]
SHARED = ("shared", "shared-2")
WAYPOINT_CLASS = at("GatewayClass", "istio-waypoint")


def get(*paths: str) -> dict:
    return {"to": [{"operation": {"methods": ["GET"], **({"paths": list(paths)} if paths else {})}}]}


def test_a_policy_at_a_service_is_for_that_service(ambient: WaypointWorld) -> None:
    """Method and path are judged; the other services of the waypoint know nothing of it."""
    with ambient.resources(authorization(at("Service", "web"), rules=[get("/open*")])):
        assert ambient.http("client", "web", "/open").status == 200
        denied = ambient.http("client", "web", "/closed")
        assert (denied.status, denied.body) == (403, b"RBAC: access denied")
        assert ambient.http("client", "web", "/open", method="POST").status == 403
        assert ambient.http("client", "both", "/closed").status == 200
        assert ambient.http("client", "direct", "/closed").status == 200


def test_a_policy_at_a_gateway_is_for_all_its_services(ambient: WaypointWorld) -> None:
    """And for no other waypoint's."""
    with ambient.resources(authorization(at("Gateway", "shared"), action="DENY", rules=[get("/secret")])):
        for service, status in (("web", 403), ("plain", 403), ("alone", 200), ("member", 200)):
            assert ambient.http("client", service, "/secret").status == status
            assert ambient.http("client", service, "/").status == 200


@pytest.mark.parametrize(("namespace", "status"), [("istio-system", 403), ("default", 200)])
def test_a_policy_at_the_class_is_for_every_waypoint(ambient: WaypointWorld, namespace: str, status: int) -> None:
    """In the root namespace only; elsewhere it is nobody's."""
    rule = authorization(WAYPOINT_CLASS, action="DENY", rules=[get("/secret")], namespace=namespace)
    with ambient.resources(rule):
        for service in ("web", "alone", "member"):
            assert ambient.http("client", service, "/secret").status == status
        assert ambient.http("client", "direct", "/secret").status == 200


def test_a_policy_at_a_gateway_holds_for_a_workloads_own_address(ambient: WaypointWorld) -> None:
    """Those of services cannot, for no service was called."""
    address, deny = (
        ambient.ip("member"),
        authorization(at("Gateway", "whole"), action="DENY", rules=[get("/gate")], namespace="whole", name="gate"),
    )
    with ambient.resources(
        deny, authorization(at("Service", "member"), action="DENY", rules=[get("/svc")], namespace="whole", name="svc")
    ):
        for path, status in (("/gate", 403), ("/svc", 200), ("/", 200)):
            assert ambient.http("client", "", path, address=address, port=8080).status == status
        assert ambient.http("client", "member", "/svc").status == 403


def test_a_selector_is_nothing_to_a_waypoint(ambient: WaypointWorld) -> None:
    """It reaches the ztunnel, which sees the waypoint: here it lets nobody in but the waypoint."""
    way = str(ambient.waypoint_identity("shared")).removeprefix("spiffe://")
    rules = [{"from": [{"source": {"principals": [way]}}]}]
    with ambient.resources(authorization(rules=rules, selector={"version": "v1"})):
        assert ambient.http("client", "web").status == 200
        assert ambient.http("client", "direct").status == 0


def test_a_policy_with_target_refs_is_nothing_to_a_ztunnel(ambient: WaypointWorld) -> None:
    """The endpoint's own address stays open to whom the waypoint refuses (facts 7, row 5)."""
    with ambient.resources(authorization(at("Service", "web"))):
        assert ambient.http("client", "web").status == 403
        assert ambient.http("client", "", address=ambient.ip("web"), port=8080).status == 200


def test_policies_see_the_clients_identity(ambient: WaypointWorld) -> None:
    """That of its certificate, not the waypoint's nor the ztunnel's."""
    client = str(ambient.identity("client")).removeprefix("spiffe://")
    rules = [{"from": [{"source": {"principals": [client]}}]}]
    with ambient.resources(authorization(at("Service", "web"), rules=rules)):
        assert ambient.http("client", "web").status == 200
        assert ambient.http("other", "web").status == 403


def test_policies_see_the_clients_address(ambient: WaypointWorld) -> None:
    """The address of its pod."""
    rules = [{"from": [{"source": {"ipBlocks": [ambient.ip("client")]}}]}]
    with ambient.resources(authorization(at("Service", "web"), rules=rules)):
        assert ambient.http("client", "web").status == 200
        assert ambient.http("other", "web").status == 403


def test_policies_see_the_services_address(ambient: WaypointWorld) -> None:
    """As the destination, also where the tunnel was asked for by name."""
    rules = [{"when": [{"key": "destination.ip", "values": [ambient.vip("web")]}]}]
    named = ambient.hbone(
        "outsider", ambient.pod("shared"), "web.default.svc.cluster.local:80", ambient.identity("client")
    )
    with ambient.resources(authorization(at("Service", "web"), rules=rules)), named as (status, talk):
        assert ambient.http("client", "web").status == 200
        assert status == 200
        assert talk(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_policies_of_tcp_end_the_connection(ambient: WaypointWorld) -> None:
    """Before any byte reaches a server, and it is counted as denied."""
    client = str(ambient.identity("client")).removeprefix("spiffe://")
    rules = [{"from": [{"source": {"principals": [client]}}]}]
    with ambient.resources(authorization(at("Service", "echo"), rules=rules)):
        assert ambient.echo("client", ambient.vip("echo"), 90) == b"hello"
        with ambient.through(*SHARED, metric="istio_tcp_connections_failed_total", response_flags="DENY"):
            assert ambient.echo("other", ambient.vip("echo"), 90) == b""


def test_a_new_policy_judges_the_next_request_of_an_open_connection(ambient: WaypointWorld) -> None:
    """No connection has to be made anew for it, and none is cut by it."""
    with ambient.keep_alive("client", ambient.vip("web"), 80, "web") as ask:
        assert ask("/").status == 200
        with ambient.resources(authorization(at("Service", "web"), action="DENY", rules=[get("/secret")])):
            assert ask("/secret").status == 403
            assert ask("/").status == 200
        assert ask("/secret").status == 200


def test_a_new_policy_ends_open_tcp_after_the_drain(ambient: WaypointWorld) -> None:
    """What it refuses goes on for `policy_drain_s` and then ends; what it allows stays."""
    client = str(ambient.identity("client")).removeprefix("spiffe://")
    rules = [{"from": [{"source": {"principals": [client]}}]}]
    with (
        ambient.connect("client", ambient.vip("echo"), 90) as kept,
        ambient.connect("other", ambient.vip("echo"), 90) as ended,
    ):
        for sock in (kept, ended):
            sock.sendall(b"before")
            assert sock.recv(10) == b"before"
        with ambient.resources(authorization(at("Service", "echo"), rules=rules)):
            assert read_all(ended) == b""
            kept.sendall(b"after")
            assert kept.recv(10) == b"after"


@pytest.mark.parametrize("mode", ["STRICT", "PERMISSIVE", "DISABLE"])
def test_peer_authentication_is_nothing_to_a_waypoint(ambient: WaypointWorld, mode: str) -> None:
    """15008 is mTLS whatever it says, and calls through it pass STRICT."""
    peer = resource("PeerAuthentication", {"mtls": {"mode": mode}}, namespace="istio-system")
    with ambient.resources(peer):
        assert ambient.http("client", "web").status == 200
        assert ambient.echo("outsider", ambient.pod("shared"), 15008, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n") == b""
        assert ambient.http("outsider", "web").status == (0 if mode == "STRICT" else 200)


# -- routes -----------------------------------------------------------------------------------------------------------


def http_route(name: str, service: str, rules: list[dict]) -> str:
    parents = [{"group": "", "kind": "Service", "name": service, "port": 80}]
    return resource("HTTPRoute", {"parentRefs": parents, "rules": rules}, name=name)


def virtual_service(name: str, service: str, http: list[dict]) -> str:
    return resource("VirtualService", {"hosts": [f"{service}.default.svc.cluster.local"], "http": http}, name=name)


def test_an_http_route_of_a_service(ambient: WaypointWorld) -> None:
    """Its match leads to another service; what it does not name gets 404."""
    rules = [
        {"matches": [{"path": {"type": "PathPrefix", "value": "/two"}}], "backendRefs": [{"name": "plain", "port": 80}]}
    ]
    with ambient.resources(http_route("to-plain", "web", rules)):
        assert ambient.http("client", "web", "/two").served_by == "plain"
        assert ambient.http("client", "web", "/one").status == 404
        assert ambient.http("client", "both", "/two").served_by in ("web", "web2")


def test_the_first_virtual_service_of_a_service(ambient: WaypointWorld) -> None:
    """A second one for the same host is not asked (facts 7, row 28)."""
    first = [{"match": [{"headers": {"x-to": {"exact": "plain"}}}], "route": [{"destination": {"host": "plain"}}]},
             {"route": [{"destination": {"host": "web"}}]}]  # fmt: skip
    second = [{"directResponse": {"status": 418}}]
    with ambient.resources(virtual_service("a", "web", first), virtual_service("b", "web", second)):
        assert ambient.http("client", "web").served_by == "web"
        assert ambient.http("client", "web", headers={"x-to": "plain"}).served_by == "plain"


def test_weights_and_subsets(ambient: WaypointWorld) -> None:
    """All weight on one subset: the other's endpoint is never chosen."""
    rule = resource("DestinationRule", {
        "host": "both", "subsets": [{"name": n, "labels": {"version": n}} for n in ("v1", "v2")],
    })  # fmt: skip
    route = [{"route": [{"destination": {"host": "both", "subset": "v2"}, "weight": 100},
                        {"destination": {"host": "both", "subset": "v1"}, "weight": 0}]}]  # fmt: skip
    with ambient.resources(rule, virtual_service("split", "both", route)):
        assert {ambient.http("client", "both").served_by for _ in range(8)} == {"web2"}


def test_a_timeout_and_a_fault(ambient: WaypointWorld) -> None:
    """Both are the waypoint's answers."""
    http = [
        {"match": [{"uri": {"exact": "/fault"}}], "fault": {"abort": {"httpStatus": 418, "percentage": {"value": 100}}},
         "route": [{"destination": {"host": "web"}}]},
        {"timeout": "0.2s", "route": [{"destination": {"host": "web"}}]},
    ]  # fmt: skip
    with ambient.resources(virtual_service("slow", "web", http)):
        assert ambient.http("client", "web", "/fault").status == 418
        assert ambient.http("client", "web", "/?delay_ms=2000").status == 504
        assert ambient.http("client", "web", "/").status == 200


def test_routes_do_not_hold_for_a_workloads_own_address(ambient: WaypointWorld) -> None:
    """No service was called."""
    http = [{"directResponse": {"status": 418}}]
    route = resource("VirtualService", {"hosts": ["member.whole.svc.cluster.local"], "http": http}, namespace="whole")
    with ambient.resources(route):
        assert ambient.http("client", "member").status == 418
        assert ambient.http("client", "", address=ambient.ip("member"), port=8080).served_by == "member"


def test_a_destination_rule_holds_for_calls_through_it(ambient: WaypointWorld) -> None:
    """A hash over the client's address: one client, one endpoint; and `ISTIO_MUTUAL` changes nothing."""
    sticky = {"loadBalancer": {"consistentHash": {"useSourceIp": True}}, "tls": {"mode": "ISTIO_MUTUAL"}}
    rule = resource("DestinationRule", {"host": "both", "trafficPolicy": sticky})
    assert {ambient.http("client", "both").served_by for _ in range(16)} == {"web", "web2"}
    with ambient.resources(rule):
        assert len({ambient.http("client", "both").served_by for _ in range(8)}) == 1


def test_an_endpoint_that_refuses_is_left_for_another(ambient: WaypointWorld) -> None:
    """Connect failures are tried again elsewhere by default: nobody hears of a dead endpoint beside a live one."""

    def change(view: dict) -> None:  # vault's port 9 has no listener: half of `both` is dead
        vault = next(w for w in view["workloads"] if w["name"] == "vault")
        vault["services"]["default/both.default.svc.cluster.local"] = {"80": 9}

    with ambient.edited(change):
        answers = [ambient.http("client", "both") for _ in range(12)]
    assert {a.status for a in answers} == {200}


# -- what it tells ----------------------------------------------------------------------------------------------------


def test_requests_are_counted_under_both_peers(ambient: WaypointWorld) -> None:
    """Istio's labels, reporter `waypoint`, mutual TLS."""
    with ambient.through(
        *SHARED, reporter="waypoint", source_workload="client", source_principal=str(ambient.identity("client")),
        destination_workload="web", destination_principal=str(ambient.identity("web")),
        destination_service="web.default.svc.cluster.local", destination_service_namespace="default",
        request_protocol="http", response_code="404", connection_security_policy="mutual_tls",
    ):  # fmt: skip
        assert ambient.http("client", "web", "/?status=404").status == 404


def test_what_the_application_is_told(ambient: WaypointWorld) -> None:
    """Request id and attempt; `http`, for the inner connection is none of TLS; no certificate of the client's."""
    with ambient.recorder("tester", 8081) as heads:
        given = {"x-forwarded-client-cert": "By=me", "x-request-id": "mine"}
        assert ambient.http("client", "tester", headers=given).body == b"ok"
    fields = fields_of(heads.get(timeout=3))
    assert (fields["x-forwarded-proto"], fields["x-request-id"], fields["x-envoy-attempt-count"]) == (
        "http",
        "mine",
        "1",
    )
    assert "x-forwarded-client-cert" not in fields
    assert fields["host"] == "tester"


def test_the_access_log_names_client_and_endpoint(ambient: WaypointWorld) -> None:
    """One line a request and a connection: what was asked, what came, who asked, who answered."""
    client, web = str(ambient.identity("client")), f"{ambient.ip('web')}:8080"
    cluster = "inbound-vip|80|http|web.default.svc.cluster.local"
    with contextlib.ExitStack() as stack:
        found = {pod: stack.enter_context(_lines(ambient, f"waypoint.{pod}", client)) for pod in SHARED}
        assert ambient.http("client", "web", "/seen?status=418").status == 418
        assert ambient.echo("client", ambient.vip("echo"), 90) == b"hello"
        wait_for(lambda: sum(len(lines()) for lines in found.values()) == 2, "two lines")
        both = [line for lines in found.values() for line in lines()]
    request, connection = sorted(both, key=lambda line: '"- - -"' in line)
    assert all(text in request for text in ('"GET /seen?status=418 HTTP/1.1" 418', web, cluster, ambient.ip("client")))
    assert all(text in connection for text in ('"- - -" 0', " 5 5 ", f"{ambient.ip('echo')}:9000"))


@contextlib.contextmanager
def _lines(world: WaypointWorld, proxy: str, wanted: str) -> Iterator[Callable[[], list[str]]]:
    before = len(world.log(proxy))
    yield lambda: [line for line in world.log(proxy)[before:].splitlines() if wanted in line]
