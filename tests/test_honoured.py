"""What each plane leaves undone of Istio's resources is told, field by field."""

from __future__ import annotations

import pytest

from testbed import registry
from testbed.honoured import not_honoured, told
from testbed.model.policy import (
    Action,
    AuthorizationPolicy,
    Condition,
    Mode,
    Operation,
    PeerAuthentication,
    Rule,
    Source,
    TargetRef,
)
from testbed.model.traffic import (
    Balance,
    ClientTls,
    ConnectionPool,
    Cors,
    Destination,
    DestinationRule,
    HashOn,
    HeaderEdits,
    HttpRoute,
    HttpRule,
    L4Match,
    L4Rule,
    LoadBalancing,
    LocalityBalance,
    OutlierDetection,
    ParentRef,
    PortPolicy,
    RequestMatch,
    TlsMode,
    TrafficPolicy,
    VirtualService,
    WeightedDestination,
)
from testbed.policyfile import OtherResource


def authorization(*operations: Operation, action: Action = Action.ALLOW, **more: object) -> AuthorizationPolicy:
    rule = Rule(operations=operations)
    return AuthorizationPolicy(name="p", namespace="n", action=action, rules=(rule,), **more)  # type: ignore[arg-type]


GET = Operation(methods=("GET",))
TARGET = (TargetRef(kind="Service", name="s"),)


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        (authorization(), None),
        (authorization(GET), "(methods): rules with them are left out, which allows less than asked"),
        (authorization(GET, action=Action.DENY), "nothing enforceable is left, the DENY has no effect"),
        (
            authorization(Operation(methods=("GET",), ports=("1",)), action=Action.DENY),
            "each is left out, which denies",
        ),
        (authorization(action=Action.AUDIT), "action AUDIT is not supported at L4"),
        (authorization(target_refs=TARGET), "targetRefs are for waypoints"),
        (PeerAuthentication(name="p", namespace="n", mode=Mode.STRICT), None),
        (PeerAuthentication(name="p", namespace="n", mode=Mode.DISABLE), "DISABLE is treated as PERMISSIVE"),
        (
            PeerAuthentication(name="p", namespace="istio-system", selector=(("a", "b"),)),
            "in the root namespace is ignored",
        ),
        (OtherResource(kind="Sidecar", name="p", namespace="n", spec_json="{}"), "needs an L7 proxy"),
        (VirtualService(name="p", namespace="n", hosts=("h",)), "needs an L7 proxy"),
    ],
)
def test_what_an_l4_plane_does_not_honour_is_told(resource: object, expected: str | None) -> None:
    """One line naming the resource and what becomes of it; nothing where all is honoured."""
    lines = [str(entry) for entry in not_honoured([resource], "ambient-l4")]

    assert len(lines) == (expected is not None)
    if expected is not None:
        assert expected in lines[0] and "/p: " in lines[0]


def virtual(rule: HttpRule, **more: object) -> VirtualService:
    return VirtualService(name="v", namespace="n", hosts=("s",), http=(rule,), **more)  # type: ignore[arg-type]


def policy(**fields: object) -> DestinationRule:
    return DestinationRule(name="d", namespace="n", host="s", policy=TrafficPolicy(**fields))  # type: ignore[arg-type]


def route(**parent: str) -> HttpRoute:
    return HttpRoute(name="r", namespace="n", parents=(ParentRef(**{"kind": "Service", "name": "s", **parent}),))


LABELLED = HttpRule(matches=(RequestMatch(source_labels=(("a", "b"),)),))
EDITED = HttpRule(
    destinations=(
        WeightedDestination(
            destination=Destination(host="s"), request_headers=HeaderEdits(set=(("x", "%START_TIME%"),))
        ),
    )
)
OF_CLIENTS = (L4Rule(matches=(L4Match(source_namespace="n"),)),)
POOL = ConnectionPool(
    max_connections=1, connect_timeout_s=1.0, idle_timeout_s=1.0, max_connection_duration_s=1.0,
    max_concurrent_streams=1, use_client_protocol=True, h2_upgrade="UPGRADE", max_pending_requests=1, max_requests=1,
    max_requests_per_connection=1, max_retries=1, http_idle_timeout_s=1.0,
)  # fmt: skip
POOL_FIELDS = [
    f"trafficPolicy.connectionPool.{field}"
    for field in (
        "tcp.maxConnections", "tcp.idleTimeout", "tcp.maxConnectionDuration",
        "http.maxConcurrentStreams", "http.useClientProtocol",
    )
]  # fmt: skip
ENVOY_POOL_FIELDS = [
    f"trafficPolicy.connectionPool.{field}"
    for field in ("tcp.idleTimeout", "tcp.maxConnectionDuration", "http.h2UpgradePolicy")
]
COOKIE = LoadBalancing(hash_on=HashOn(cookie="c", cookie_ttl_s=0.0))
LOCALITY = LoadBalancing(locality=LocalityBalance(failover=(("a", "b"),)))
JWT = Rule(sources=(Source(request_principals=("*",)),))
CLAIM = Rule(conditions=(Condition(key="request.auth.claims[iss]", values=("x",)),))


@pytest.mark.parametrize(
    ("plane", "resource", "fields"),
    [
        ("sidecar", virtual(HttpRule(cors=Cors())), ["http[0].corsPolicy"]),
        ("sidecar", virtual(HttpRule(kept_fields=("delegate",))), ["http[0].delegate"]),
        ("sidecar", virtual(HttpRule(), tcp=(L4Rule(),), gateways=("gw",)), ["gateways"]),
        ("sidecar", virtual(HttpRule(), tls=(L4Rule(),)), ["tls"]),
        ("sidecar", virtual(HttpRule(), tcp=(L4Rule(kept_fields=("match.x",)),)), ["tcp[0].match.x"]),
        ("ambient", virtual(HttpRule(), tcp=OF_CLIENTS), ["tcp[0].match.sourceNamespace"]),
        ("sidecar", virtual(LABELLED), []),
        ("ambient", virtual(LABELLED), ["http[0].match.sourceLabels"]),
        ("sidecar", virtual(EDITED), ["http[0].headers"]),
        ("sidecar", route(kind="Gateway"), ["parentRefs"]),
        ("sidecar", route(), []),
        ("sidecar", policy(tls=ClientTls(mode=TlsMode.SIMPLE)), ["trafficPolicy.tls"]),
        ("sidecar", policy(tls=ClientTls(mode=TlsMode.DISABLE)), []),
        ("ambient", policy(tls=ClientTls(mode=TlsMode.DISABLE)), ["trafficPolicy.tls"]),
        ("sidecar", policy(load_balancing=LOCALITY), ["trafficPolicy.loadBalancer.localityLbSetting"]),
        (
            "sidecar",
            policy(ports=(PortPolicy(port=80, policy=TrafficPolicy(load_balancing=LoadBalancing(warmup_s=1.0))),)),
            ["trafficPolicy.portLevelSettings[80].loadBalancer.warmup"],
        ),
        (
            "sidecar",
            policy(load_balancing=LoadBalancing(hash_on=HashOn(source_ip=True, maglev=True))),
            ["trafficPolicy.loadBalancer.consistentHash.maglev"],
        ),
        ("sidecar", policy(connection_pool=POOL), POOL_FIELDS),
        ("ambient", policy(connection_pool=POOL), POOL_FIELDS),
        ("envoy-sidecar", policy(connection_pool=POOL), ENVOY_POOL_FIELDS),
        ("hybrid", policy(load_balancing=COOKIE), ["trafficPolicy.loadBalancer.consistentHash.httpCookie.ttl"]),
        ("envoy-ambient", policy(load_balancing=COOKIE), []),
        ("sidecar", policy(load_balancing=LoadBalancing(hash_on=HashOn(cookie="c"))), []),
        (
            "sidecar",
            policy(load_balancing=LoadBalancing(simple=Balance.PASSTHROUGH)),
            ["trafficPolicy.loadBalancer.simple"],
        ),
        ("sidecar", policy(outlier_detection=OutlierDetection()), ["trafficPolicy.outlierDetection"]),
        ("envoy-sidecar", policy(outlier_detection=OutlierDetection()), []),
        ("ambient", policy(tls=ClientTls(mode=TlsMode.MUTUAL)), ["trafficPolicy.tls"]),
        ("sidecar", authorization(GET), []),
        ("ambient", authorization(GET), ["rules"]),
        ("ambient", authorization(GET, target_refs=TARGET), []),
        ("sidecar", authorization(GET, target_refs=TARGET), ["targetRefs"]),
        ("sidecar", authorization(action=Action.CUSTOM, provider="p"), ["action"]),
        ("sidecar", AuthorizationPolicy(name="p", namespace="n", rules=(JWT, CLAIM)), ["rules", "rules"]),
        ("sidecar", OtherResource(kind="Telemetry", name="t", namespace="n", spec_json="{}"), [""]),
    ],
)
def test_what_an_l7_plane_does_not_honour_is_told(plane: str, resource: object, fields: list[str]) -> None:
    """By the field's path in the resource."""
    assert [entry.field for entry in not_honoured([resource], plane)] == fields


def test_no_plane_honours_nothing() -> None:
    """`none` has no proxy at all."""
    resources = [authorization(), PeerAuthentication(name="p", namespace="n"), virtual(HttpRule()), route()]

    assert [entry.why for entry in not_honoured(resources, "none")] == ["no proxy enforces it"] * 4


def test_a_route_beside_a_virtual_service_is_told() -> None:
    """facts/hbone 7, 28: one of them counts, and the reader should know which."""
    (entry,) = not_honoured([virtual(HttpRule()), route()], "ambient")

    assert str(entry).startswith("HTTPRoute n/r: VirtualService n/v is taken instead")


@pytest.mark.parametrize("plane", sorted(registry.BUILT_IN["plane"]))
def test_of_every_plane_here_it_is_known_what_it_honours(plane: str) -> None:
    """A new plane must be put among its kind, or each resource would be said to do nothing under it."""
    assert all("does not say" not in entry.why for entry in not_honoured([authorization()], plane))


def test_of_a_plane_from_outside_nothing_is_promised() -> None:
    """It may honour all of it or nothing."""
    (entry,) = not_honoured([authorization()], "own")

    assert str(entry) == "AuthorizationPolicy n/p: this plane does not say what it does with it"


def test_people_are_told_each_reason_once() -> None:
    """With all that it concerns, and the field where it is one."""
    resources = [authorization(), PeerAuthentication(name="p", namespace="n", mode=Mode.DISABLE), virtual(HttpRule())]

    assert told(resources, "none") == [
        "AuthorizationPolicy n/p, PeerAuthentication n/p, VirtualService n/v: no proxy enforces it"
    ]
    assert told(resources, "ambient-l4") == [
        "PeerAuthentication n/p: mtls.mode: DISABLE is treated as PERMISSIVE",
        "VirtualService n/v: needs an L7 proxy",
    ]
    assert told([], "sidecar") == []
