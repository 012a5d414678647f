"""Which request goes where: at a client's sidecar by host and port, at a waypoint by the service that was dialled."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from planes.l7.decision import Decision, Kind, grpc_code, shadow_authority
from planes.l7.message import Request
from planes.l7.place import l7_view
from planes.l7.route import RouteTable
from planes.l7.view import L7View
from planes.mesh.view import MeshView
from planes.ztunnel.place import mesh_view
from testbed.model.topology import App, Node, Service, ServicePort, Topology, Workload
from testbed.model.traffic import (
    Destination,
    DestinationRule,
    DirectResponse,
    Fault,
    HeaderEdits,
    HttpRoute,
    HttpRule,
    L4Match,
    L4Rule,
    Mirror,
    NamedMatch,
    ParentRef,
    Redirect,
    RequestMatch,
    Retries,
    Rewrite,
    Subset,
    TextKind,
    TextMatch,
    VirtualService,
    WeightedDestination,
)


def workload(name: str, address: str, namespace: str = "shop", **labels: str) -> Workload:
    app = App(kind="http-echo", ports=(8080,))
    return Workload(
        name=name, group=name, namespace=namespace, service_account=name, node="n1", address=address, app=app,
        labels=tuple({"app": name, **labels}.items()),
    )  # fmt: skip


def service(name: str, address: str, *endpoints: str, namespace: str = "shop", port: int = 80) -> Service:
    ports = (ServicePort(port=port, target_port=8080, protocol="http"),)
    return Service(name=name, namespace=namespace, address=address, ports=ports, endpoints=endpoints)


CLIENT = workload("web", "10.0.1.2", version="v7")


def topology(*resources: object) -> Topology:
    return Topology(
        name="t",
        nodes=(Node(name="n1", zone="z", address="10.0.1.1", network="10.0.1.0/24"),),
        workloads=(CLIENT, workload("b1", "10.0.1.3", version="v1"), workload("b2", "10.0.1.4", version="v2")),
        services=(
            service("b", "10.96.0.10", "b1", "b2"),
            service("c", "10.96.0.11", "b2"),
            service("d", "10.96.0.12", namespace="far"),
            service("e", "10.96.0.13", "b1", port=9090),
        ),
        links=(),
        policies=resources,
    )


def sidecar(*resources: object, outbound_any: bool = True) -> RouteTable:
    view = l7_view(topology(*resources), workload=CLIENT, outbound_any=outbound_any)
    return RouteTable(L7View.parse(json.loads(json.dumps(view))))


def waypoint(*resources: object) -> RouteTable:
    t = topology(*resources)
    view = l7_view(t, waypoint=("shop", "wp"), services=[t.service("b"), t.service("c")])
    return RouteTable(L7View.parse(json.loads(json.dumps(view))))


def draws(*values: float) -> Iterator[float]:
    return iter(values)


def ask(
    table: RouteTable, authority: str = "b", path: str = "/", *chance: float, method: str = "GET",
    address: str = "10.96.0.10", port: int = 80, fields: dict[str, str] | None = None,
) -> Decision:  # fmt: skip
    head = [(k.encode(), v.encode()) for k, v in (fields or {}).items()]
    request = Request(method.encode(), authority.encode(), path.encode(), head)
    return table.decide(request, address=address, port=port, draw=draws(*chance).__next__)


def name(decision: Decision) -> str:
    return decision.cluster.name if decision.cluster is not None else f"{decision.status}"


def to(host: str, weight: int | None = None, subset: str = "", **more: HeaderEdits) -> WeightedDestination:
    return WeightedDestination(destination=Destination(host=host, subset=subset), weight=weight, **more)


def exact(text: str) -> TextMatch:
    return TextMatch(kind=TextKind.EXACT, value=text)


def prefix(text: str) -> TextMatch:
    return TextMatch(kind=TextKind.PREFIX, value=text)


def segments(text: str) -> TextMatch:
    return TextMatch(kind=TextKind.SEGMENTS, value=text)


def virtual(
    *rules: HttpRule, hosts: tuple[str, ...] = ("b",), namespace: str = "shop", **more: object
) -> VirtualService:
    return VirtualService(name="v", namespace=namespace, hosts=hosts, http=rules, **more)  # type: ignore[arg-type]


def at(uri: TextMatch, *destinations: WeightedDestination, **more: object) -> HttpRule:
    return HttpRule(matches=(RequestMatch(uri=uri),), destinations=destinations, **more)  # type: ignore[arg-type]


def attached(*rules: HttpRule, route: str = "r", namespace: str = "shop", port: int | None = None) -> HttpRoute:
    parent = ParentRef(kind="Service", name="b", namespace="shop", port=port)
    return HttpRoute(name=route, namespace=namespace, parents=(parent,), rules=rules)


X_U = NamedMatch(name="x-u", text=exact("j"))
PRESENT = TextMatch(kind=TextKind.PRESENT)
B, C, D = ("outbound|80||b.shop.svc.cluster.local", "outbound|80||c.shop.svc.cluster.local",
           "outbound|80||d.far.svc.cluster.local")  # fmt: skip


class TestHosts:
    @pytest.mark.parametrize(
        ("authority", "expected"),
        [
            ("b", B), ("B", B), ("b:80", B), ("b.shop", B), ("b.shop.svc", B), ("b.shop.svc.cluster.local", B),
            ("b.shop.svc.cluster.local.", B), ("b.shop.svc.cluster.local:80", B), ("10.96.0.10", B),
            ("10.96.0.10:80", B), ("d.far", D), ("b:8080", B),
        ],
    )  # fmt: skip
    def test_a_service_is_known_by_its_names_and_address(self, authority: str, expected: str) -> None:
        """With or without port, in any case, with a final dot."""
        assert name(ask(sidecar(), authority)) == expected

    @pytest.mark.parametrize("authority", ["d", "x", "b.far", "example.com", "", "[fd00::1]:80", "e"])
    def test_an_unknown_host_goes_to_where_the_client_dialled(self, authority: str) -> None:
        """ALLOW_ANY; a short name is one of the client's own namespace only, a service one of its own ports only."""
        assert ask(sidecar(), authority).kind is Kind.PASSTHROUGH

    def test_an_unknown_host_is_refused_under_registry_only(self) -> None:
        """Istio's black hole answers 502."""
        assert ask(sidecar(outbound_any=False), "example.com").status == 502

    def test_a_port_without_http_service_is_passed_through(self) -> None:
        """Nothing is served there by name."""
        assert ask(sidecar(), "b", port=8443).kind is Kind.PASSTHROUGH
        assert name(ask(sidecar(), "e", port=9090)) == "outbound|9090||e.shop.svc.cluster.local"

    def test_a_memory_of_authorities_has_an_end(self) -> None:
        """A client that sends ever new hosts cannot fill the proxy."""
        table = sidecar()
        for number in range(10_000):
            ask(table, f"h{number}")

        assert len(table._hosts) <= 4096

    def test_a_waypoint_asks_what_was_dialled_and_not_the_authority(self) -> None:
        """istiod gives its virtual hosts the domain `*`."""
        assert name(ask(waypoint(), "whatever")) == "inbound-vip|80|http|b.shop.svc.cluster.local"
        assert name(ask(waypoint(), address="b.shop.svc.cluster.local")).startswith("inbound-vip|80|http|b.")

    @pytest.mark.parametrize(("address", "port"), [("10.96.0.12", 80), ("1.2.3.4", 80), ("10.96.0.10", 81)])
    def test_a_waypoint_does_not_know_what_it_does_not_serve(self, address: str, port: int) -> None:
        """404, for there is no route."""
        decision = ask(waypoint(), address=address, port=port)
        assert (decision.status, decision.flag) == (404, "NR")


class TestVirtualService:
    def test_routes_are_asked_in_order(self) -> None:
        """The first that matches, however general."""
        rules = (
            at(prefix("/a"), to("c")),
            at(exact("/a/b"), to("d.far.svc.cluster.local")),
            HttpRule(destinations=(to("b"),)),
        )
        table = sidecar(virtual(*rules))

        assert [name(ask(table, "b", p)) for p in ("/a/b", "/ab", "/x?/a")] == [C, C, B]

    def test_without_a_default_route_the_rest_is_not_found(self) -> None:
        """A VirtualService stands for the whole host."""
        assert name(ask(sidecar(virtual(at(prefix("/a"), to("c")))), "b", "/b")) == "404"

    @pytest.mark.parametrize(
        ("match", "path", "fields", "holds"),
        [
            (RequestMatch(uri=TextMatch(kind=TextKind.REGEX, value="/a/[0-9]+")), "/a/12?x", {}, True),
            (RequestMatch(uri=TextMatch(kind=TextKind.REGEX, value="/a")), "/ab", {}, False),
            (RequestMatch(uri=TextMatch(kind=TextKind.EXACT, value="/A", ignore_case=True)), "/a", {}, True),
            (RequestMatch(headers=(X_U,)), "/", {"x-u": "j"}, True),
            (RequestMatch(headers=(X_U,)), "/", {}, False),
            (RequestMatch(headers=(NamedMatch(name="x", text=PRESENT),)), "/", {"x": ""}, True),
            (RequestMatch(without_headers=(X_U,)), "/", {"x-u": "j"}, False),
            (RequestMatch(without_headers=(X_U,)), "/", {}, True),
            (RequestMatch(query=(NamedMatch(name="v", text=exact("2")),)), "/?a=1&v=2&v=3", {}, True),
            (RequestMatch(query=(NamedMatch(name="v", text=exact("3")),)), "/?v=2&v=3", {}, False),
            (RequestMatch(method=exact("GET")), "/", {}, True),
            (RequestMatch(method=exact("PUT")), "/", {}, False),
            (RequestMatch(scheme=exact("http")), "/", {}, True),
            (RequestMatch(authority=prefix("b")), "/", {}, True),
            (RequestMatch(port=80), "/", {}, True),
            (RequestMatch(port=81), "/", {}, False),
            (RequestMatch(source_labels=(("version", "v7"),)), "/", {}, True),
            (RequestMatch(source_labels=(("version", "v8"),)), "/", {}, False),
            (RequestMatch(source_namespace="shop"), "/", {}, True),
            (RequestMatch(source_namespace="far"), "/", {}, False),
            (RequestMatch(gateways=("istio-system/gw",)), "/", {}, False),
            (RequestMatch(uri=prefix("/a"), method=exact("PUT")), "/a", {}, False),
        ],
    )  # fmt: skip
    def test_matches(self, match: RequestMatch, path: str, fields: dict[str, str], holds: bool) -> None:
        """All of a match must hold; paths without query, parameters by their first value."""
        table = sidecar(virtual(HttpRule(matches=(match,), destinations=(to("c"),)), HttpRule(destinations=(to("b"),))))

        assert name(ask(table, "b", path, fields=fields)) == (C if holds else B)

    @pytest.mark.parametrize("without", [False, True])
    def test_a_header_sent_twice_is_compared_line_by_line(self, without: bool) -> None:
        """Joined with commas, the second line would hide the first."""
        match = RequestMatch(**{"without_headers" if without else "headers": (X_U,)})
        table = sidecar(virtual(HttpRule(matches=(match,), destinations=(to("c"),)), HttpRule(destinations=(to("b"),))))
        twice = Request(b"GET", b"b", b"/", [(b"x-u", b"other"), (b"x-u", b"j")])

        assert name(table.decide(twice, address="10.96.0.10", port=80, draw=draws().__next__)) == (B if without else C)

    def test_weights_share_the_draw(self) -> None:
        """In proportion, whatever they add up to; 0 gets nothing."""
        table = sidecar(virtual(HttpRule(destinations=(to("b", 30), to("c", 10), to("d.far.svc.cluster.local", 0)))))

        assert [name(ask(table, "b", "/", d)) for d in (0.0, 0.74, 0.76, 0.999)] == [B, B, C, C]

    def test_an_unknown_destination_is_503_and_no_cluster(self) -> None:
        """As Envoy says when a route names a cluster that is not there: host, port or subset."""
        for destination in (Destination(host="x"), Destination(host="b", port=81), Destination(host="b", subset="v9")):
            decision = ask(sidecar(virtual(HttpRule(destinations=(WeightedDestination(destination=destination),)))))
            assert (decision.status, decision.flag) == (503, "NC")

    def test_the_most_exact_host_wins_at_a_sidecar(self) -> None:
        """Then the oldest; resources of other namespaces count by their full names."""
        wide = virtual(
            HttpRule(destinations=(to("c.shop.svc.cluster.local"),)),
            hosts=("*.shop.svc.cluster.local",),
            namespace="far",
        )
        own = virtual(HttpRule(destinations=(to("b"),)))

        assert name(ask(sidecar(wide), "b")) == C
        assert name(ask(sidecar(wide, own), "b")) == B
        assert name(ask(sidecar(virtual(HttpRule(destinations=(to("c"),)), hosts=("b",), namespace="far")), "b")) == B

    @pytest.mark.parametrize("more", [{"gateways": ("gw",)}, {"export_to": (".",)}, {"export_to": ("x",)}])
    def test_a_resource_not_for_this_client_is_not_seen(self, more: dict) -> None:
        """Of another gateway, or not exported here."""
        hosts = ("b.shop.svc.cluster.local",)
        assert name(ask(sidecar(virtual(at(prefix("/z"), to("b")), hosts=hosts, namespace="far", **more)), "b")) == B

    def test_a_host_that_is_no_service_has_routes_on_port_80(self) -> None:
        """So a VirtualService can send a made-up name to a service."""
        table = sidecar(virtual(HttpRule(destinations=(to("c"),)), hosts=("www.example.com", "*.example.org")))

        assert name(ask(table, "www.example.com")) == name(ask(table, "a.example.org:80")) == C
        assert ask(table, "example.org").kind is Kind.PASSTHROUGH

    def test_timeouts_retries_and_edits_are_told(self) -> None:
        """The destination's edits come before the route's."""
        rule = HttpRule(
            destinations=(to("b", request_headers=HeaderEdits(set=(("x-a", "1"),))),),
            timeout_s=2.0,
            retries=Retries(attempts=3, retry_on="5xx,418", per_try_timeout_s=0.5),
            request_headers=HeaderEdits(remove=("x-b",), add=(("x-a", "2"),)),
            response_headers=HeaderEdits(set=(("x-c", "3"),)),
        )
        decision = ask(sidecar(virtual(rule)))
        fields = [(b"x-a", b"0"), (b"x-b", b"0")]
        for edit in decision.request_edits:
            fields = edit.apply(fields)

        assert fields == [(b"x-a", b"1"), (b"x-a", b"2")]
        assert decision.response_edits[0].apply([]) == [(b"x-c", b"3")]
        assert decision.timeout_s == 2.0
        assert decision.retry is not None
        assert (decision.retry.attempts, decision.retry.statuses) == (3, frozenset({418}))
        assert (decision.retry.conditions, decision.retry.per_try_timeout_s) == (frozenset({"5xx"}), 0.5)

    def test_no_retries_when_attempts_is_zero_and_two_by_default(self) -> None:
        """facts/hbone 4.5."""
        assert ask(sidecar(virtual(HttpRule(destinations=(to("b"),), retries=Retries(attempts=0))))).retry is None
        default = ask(sidecar()).retry
        assert default is not None
        assert (default.attempts, "5xx" in default.conditions, "connect-failure" in default.conditions) == (
            2,
            False,
            True,
        )

    def test_setting_host_rewrites_the_authority(self) -> None:
        """It is no field here."""
        rule = HttpRule(destinations=(to("b"),), request_headers=HeaderEdits(set=(("Host", "other"),)))
        assert ask(sidecar(virtual(rule))).authority == b"other"

    @pytest.mark.parametrize(
        ("uri", "rewrite", "path", "expected"),
        [
            (prefix("/a"), Rewrite(prefix="/b"), "/a/x?q=/a", "/b/x?q=/a"),
            (prefix("/a"), Rewrite(prefix="/"), "/a/x", "//x"),
            (exact("/a"), Rewrite(prefix="/b"), "/a?q", "/b?q"),
            (None, Rewrite(prefix="/b/"), "/x", "/b/x"),
            (segments("/a"), Rewrite(prefix="/b"), "/a", "/b"),
            (segments("/a"), Rewrite(prefix="/b"), "/a/x", "/b/x"),
            (segments("/a/"), Rewrite(prefix="/b/"), "/a/x", "/b/x"),
            (segments("/a"), Rewrite(prefix="/"), "/a/x", "/x"),
            (segments("/a"), Rewrite(prefix="/"), "/a?q", "/?q"),
            (segments("/"), Rewrite(prefix="/b"), "/x", "/b/x"),
            (prefix("/a"), Rewrite(path="/whole"), "/a/x?q", "/whole?q"),
            (prefix("/a"), Rewrite(regex=("^/a/([^/]+)/.*$", r"/\1")), "/a/x/y?q", "/x?q"),
        ],
    )
    def test_rewrites(self, uri: TextMatch | None, rewrite: Rewrite, path: str, expected: str) -> None:
        """A prefix match loses its prefix, any other its whole path; the query stays."""
        matches = (RequestMatch(uri=uri),) if uri is not None else ()
        rule = HttpRule(matches=matches, destinations=(to("b"),), rewrite=rewrite)
        assert ask(sidecar(virtual(rule)), "b", path).path == expected.encode()

    @pytest.mark.parametrize(
        ("redirect", "expected"),
        [
            (Redirect(status=301, path="/n"), "http://b:80/n?q"),
            (Redirect(status=302, authority="x.com"), "http://x.com/a/b?q"),
            (Redirect(status=308, scheme="https"), "https://b/a/b?q"),
            (Redirect(status=301, scheme="https", port=443), "https://b/a/b?q"),
            (Redirect(status=301, port=8443), "http://b:8443/a/b?q"),
            (Redirect(status=301, prefix="/z"), "http://b:80/z/b?q"),
            (Redirect(status=301, path="/n?p"), "http://b:80/n?p"),
        ],
    )
    def test_redirects(self, redirect: Redirect, expected: str) -> None:
        """The request's own part is kept where nothing else is said."""
        decision = ask(sidecar(virtual(at(prefix("/a"), redirect=redirect))), "b:80", "/a/b?q")

        assert decision.status == redirect.status
        assert dict(decision.fields)[b"location"].decode() == expected

    def test_a_direct_response_needs_no_upstream(self) -> None:
        """Status and body as written."""
        decision = ask(sidecar(virtual(HttpRule(direct_response=DirectResponse(status=418, body="tea")))))
        assert (decision.kind, decision.status, decision.body) == (Kind.RESPOND, 418, b"tea")

    def test_faults_fall_by_share(self) -> None:
        """Delay and abort are drawn apart; a gRPC status is a gRPC answer; a share of 0 does nothing."""
        fault = Fault(delay_s=2.0, delay_share=0.5, abort_status=503, abort_share=0.1)
        table = sidecar(virtual(HttpRule(destinations=(to("b"),), fault=fault)))
        delayed, aborted = ask(table, "b", "/", 0.4, 0.2), ask(table, "b", "/", 0.6, 0.05)
        assert (delayed.kind, delayed.delay_s, delayed.flag) == (Kind.FORWARD, 2.0, "DI")
        assert (aborted.kind, aborted.delay_s, aborted.status, aborted.flag) == (Kind.RESPOND, 0.0, 503, "FI")

        grpc = Fault(abort_grpc_status="UNAVAILABLE", abort_share=1.0)
        answer = ask(sidecar(virtual(HttpRule(destinations=(to("b"),), fault=grpc))), "b", "/", 0.0, 0.0)
        assert (answer.status, dict(answer.fields)[b"grpc-status"]) == (200, b"14")
        nothing = Fault(delay_s=2.0, abort_status=500)
        assert ask(sidecar(virtual(HttpRule(destinations=(to("b"),), fault=nothing))), "b", "/", 0.0, 0.0).delay_s == 0

    def test_mirrors_are_drawn_each(self) -> None:
        """A mirror whose service is not known is left out."""
        mirrors = tuple(
            Mirror(destination=Destination(host=h), share=s) for h, s in (("c", 1.0), ("b", 0.5), ("x", 1.0))
        )
        table = sidecar(virtual(HttpRule(destinations=(to("b"),), mirrors=mirrors)))

        assert [c.name for c in ask(table, "b", "/", 0.4).mirrors] == [C, B]
        assert [c.name for c in ask(table, "b", "/", 0.6).mirrors] == [C]


class TestWaypoint:
    def test_only_the_first_virtual_service_of_two_namespaces_counts(self) -> None:
        """facts/hbone 3.6: the oldest match, however wide, and none from elsewhere."""
        wide = virtual(HttpRule(destinations=(to("c"),)), hosts=("*.shop.svc.cluster.local",))
        own = virtual(HttpRule(destinations=(to("b"),)))
        far = virtual(HttpRule(destinations=(to("d"),)), hosts=("b.shop.svc.cluster.local",), namespace="far")

        assert name(ask(waypoint(far, wide, own))) == "inbound-vip|80|http|c.shop.svc.cluster.local"
        assert name(ask(waypoint(far))) == "inbound-vip|80|http|b.shop.svc.cluster.local"

    def test_who_the_client_is_is_not_asked(self) -> None:
        """istiod leaves sourceLabels out of a waypoint's routes, so such a match holds for all."""
        match = RequestMatch(source_labels=(("version", "none"),))
        assert "|c." in name(ask(waypoint(virtual(HttpRule(matches=(match,), destinations=(to("c"),))))))

    def test_a_destination_it_does_not_serve_is_an_outbound_cluster(self) -> None:
        """It may be behind another waypoint."""
        assert name(ask(waypoint(virtual(HttpRule(destinations=(to("d.far.svc.cluster.local"),)))))) == D


class TestHttpRoute:
    def test_the_most_specific_match_goes_first(self) -> None:
        """Exact, longer prefix, method, headers, parameters; across routes and whatever their order."""
        header = NamedMatch(name="x", text=exact("1"))
        rules = [
            ("any", HttpRule(name="any", destinations=(to("b"),))),
            ("short", at(segments("/a"), to("b"), name="short")),
            ("long", at(segments("/a/b"), to("b"), name="long")),
            ("exact", at(exact("/a/b"), to("b"), name="exact")),
            (
                "get",
                HttpRule(
                    name="get",
                    matches=(RequestMatch(uri=segments("/a"), method=exact("GET")),),
                    destinations=(to("b"),),
                ),
            ),
            (
                "header",
                HttpRule(
                    name="header",
                    matches=(RequestMatch(uri=segments("/a"), headers=(header,)),),
                    destinations=(to("b"),),
                ),
            ),
        ]
        expected = [("/a/b", "exact", {}), ("/a/b/c", "long", {}), ("/a", "get", {}), ("/ab", "any", {})]
        for order in (rules, rules[::-1]):
            table = sidecar(attached(*(r for _, r in order[:3])), attached(*(r for _, r in order[3:]), route="q"))
            got = [ask(table, "b", path, fields=fields).route.rpartition(".")[2] for path, _, fields in expected]
            assert got == [rule for _, rule, _ in expected]
            assert ask(table, "b", "/a", method="PUT", fields={"x": "1"}).route.endswith(".header")

    def test_weights_default_to_one_and_none_at_all_is_500(self) -> None:
        """And so is a backend that does not exist, for its share."""
        table = waypoint(attached(HttpRule(destinations=(to("b"), to("c", 3)))))
        assert "|b." in name(ask(table, "b", "/", 0.2))
        assert "|c." in name(ask(table, "b", "/", 0.3))
        for destinations in ((to("b", 0), to("c", 0)), (to("b", 0),), (to("x"),), ()):
            assert ask(waypoint(attached(HttpRule(destinations=destinations)))).status == 500

    def test_no_rule_that_matches_is_404(self) -> None:
        """Attaching a route takes the service's default away."""
        assert ask(waypoint(attached(at(segments("/a"), to("b")))), "b", "/x").status == 404

    def test_a_clients_own_route_stands_instead_of_the_services(self) -> None:
        """Consumer routes concern the clients of their namespace, and never a waypoint."""
        client = Workload(
            name="f", group="f", namespace="far", service_account="f", node="n1", address="10.0.1.9",
            app=App(kind="idle"),
        )  # fmt: skip
        own = attached(HttpRule(destinations=(to("d"),)), namespace="far", route="own")
        beside = attached(HttpRule(destinations=(to("c"),)))
        view = L7View.parse(l7_view(topology(own, beside), workload=client))

        assert name(ask(RouteTable(view), "b.shop")) == D
        assert name(ask(sidecar(own, beside), "b.shop")) == C
        assert "|c." in name(ask(waypoint(own, beside)))

    def test_a_parent_with_a_port_concerns_that_port(self) -> None:
        """Others keep their default route."""
        assert ask(sidecar(attached(HttpRule(destinations=(to("c"),)), port=81))).route == "default"


def test_a_subset_is_the_endpoints_with_its_labels() -> None:
    """And its traffic policy is merged before anyone asks."""
    rule = DestinationRule(
        name="b", namespace="shop", host="b",
        subsets=(Subset(name="v1", labels=(("version", "v1"),)), Subset(name="v9", labels=(("version", "v9"),))),
    )  # fmt: skip
    resources = rule, virtual(HttpRule(destinations=(to("b", subset="v1"),)))
    table = sidecar(*resources)
    mesh = MeshView.parse(mesh_view(topology(*resources), captured=()))
    cluster = ask(table).cluster
    assert cluster is not None
    whole, empty = (table.view.cluster("shop/b.shop.svc.cluster.local", 80, s) for s in ("", "v9"))
    assert whole is not None and empty is not None

    assert (cluster.name, cluster.sni) == (
        "outbound|80|v1|b.shop.svc.cluster.local", "outbound_.80_.v1_.b.shop.svc.cluster.local",
    )  # fmt: skip
    assert [e.workload.name for e in table.view.members(cluster, mesh)] == ["b1"]
    assert [e.workload.name for e in table.view.members(whole, mesh)] == ["b1", "b2"]
    assert table.view.members(empty, mesh) == ()


@pytest.mark.parametrize(
    ("authority", "expected"), [(b"b", b"b-shadow"), (b"b:80", b"b-shadow:80"), (b"10.0.0.1:80", b"10.0.0.1-shadow:80")]
)
def test_a_mirrored_request_bears_a_shadow(authority: bytes, expected: bytes) -> None:
    """So that logs tell it from the real one."""
    assert shadow_authority(authority) == expected


def test_grpc_codes_by_name_or_number() -> None:
    """As fault.abort.grpcStatus takes them."""
    assert (grpc_code("UNAVAILABLE"), grpc_code("deadline_exceeded"), grpc_code("7")) == (14, 4, 7)


class TestConnections:
    """`tcp` routes: where connections to a service may go, for what is known before any of them."""

    def options(self, table: RouteTable, port: int = 80) -> list[tuple[str, int]]:
        service = table.view.by_hostname["b.shop.svc.cluster.local"]
        return [(c.name if c else "nobody", weight) for c, weight in table.connections(service, port).options]

    @pytest.mark.parametrize(
        ("matches", "holds"),
        [
            ((), True),
            ((L4Match(port=80),), True),
            ((L4Match(port=81),), False),
            ((L4Match(port=81), L4Match(destination_subnets=("10.96.0.10",))), True),
            ((L4Match(destination_subnets=("10.97.0.0/16", "10.96.0.0/16")),), True),
            ((L4Match(destination_subnets=("10.97.0.0/16",)),), False),
            ((L4Match(source_labels=(("version", "v7"),)),), True),
            ((L4Match(source_labels=(("version", "v8"),)),), False),
            ((L4Match(source_namespace="far"),), False),
            ((L4Match(gateways=("gw",)),), False),
        ],
    )
    def test_the_first_rule_that_holds_else_the_service(self, matches: tuple[L4Match, ...], holds: bool) -> None:
        """All of a match, any of a rule's matches."""
        rule = L4Rule(matches=matches, destinations=(to("c"),))
        expected = "outbound|80||c.shop.svc.cluster.local" if holds else "outbound|80||b.shop.svc.cluster.local"
        assert self.options(sidecar(virtual(tcp=(rule,)))) == [(expected, 1)]

    def test_weights_and_destinations_nobody_knows(self) -> None:
        """What has no weight beside others gets nothing; a connection for nobody ends."""
        rule = L4Rule(destinations=(to("c", 30), to("x", 70), to("b", 0), to("e")))
        table = sidecar(virtual(tcp=(rule,)))
        assert self.options(table) == [("outbound|80||c.shop.svc.cluster.local", 30), ("nobody", 70)]
        routes = table.connections(table.view.by_hostname["b.shop.svc.cluster.local"], 80)
        found = [routes.choose(lambda mark=mark: mark) for mark in (0.0, 0.29, 0.31, 0.99)]
        assert [c.hostname if c else None for c in found] == ["c.shop.svc.cluster.local"] * 2 + [None] * 2
        assert self.options(sidecar(virtual(tcp=(L4Rule(destinations=(to("c"), to("b"))),)))) == [("nobody", 1)]

    def test_a_waypoint_asks_for_the_port_alone(self) -> None:
        rule = L4Rule(matches=(L4Match(source_namespace="far", port=80),), destinations=(to("c"),))
        assert self.options(waypoint(virtual(tcp=(rule,)))) == [("inbound-vip|80|http|c.shop.svc.cluster.local", 1)]
