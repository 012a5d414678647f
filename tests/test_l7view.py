"""What an L7 proxy is told: which policies, modes and destination rules concern it, and how they add up."""

from __future__ import annotations

import dataclasses
import json

import pytest

from planes.l7.place import l7_view, sidecar_config, waypoint_config
from planes.l7.view import L7Config, L7View, Role, exported, host_rank
from testbed.model.l4policy import Connection
from testbed.model.plain import from_plain, to_plain
from testbed.model.policy import Action, AuthorizationPolicy, Mode, PeerAuthentication, Rule, TargetRef
from testbed.model.topology import App, Node, Service, ServicePort, Topology, Workload
from testbed.model.traffic import (
    Balance,
    ConnectionPool,
    DestinationRule,
    LoadBalancing,
    OutlierDetection,
    PortPolicy,
    RetryBudget,
    Subset,
    TrafficPolicy,
    VirtualService,
)

B1 = Workload(
    name="b1", group="b", namespace="shop", service_account="b", node="n1", address="10.0.1.3",
    app=App(kind="http-echo", ports=(8080, 9090)), labels=(("app", "b"),),
)  # fmt: skip
B, C = (
    Service(
        name=name, namespace="shop", address=f"10.96.0.{n}", endpoints=("b1",),
        ports=(ServicePort(port=80, target_port=8080, protocol=protocol),),
    )
    for n, (name, protocol) in enumerate((("b", "http"), ("c", "grpc")), 10)
)  # fmt: skip


def topology(*resources: object, services: tuple[Service, ...] = (B,)) -> Topology:
    node = Node(name="n1", zone="z", address="10.0.1.1", network="10.0.1.0/24")
    return Topology(name="t", nodes=(node,), workloads=(B1,), services=services, links=(), policies=resources)


def policy(name: str, namespace: str = "shop", **more: object) -> AuthorizationPolicy:
    return AuthorizationPolicy(name=name, namespace=namespace, **more)  # type: ignore[arg-type]


def ref(kind: str, name: str) -> dict[str, tuple[TargetRef, ...]]:
    return {"target_refs": (TargetRef(kind=kind, name=name),)}


POLICIES = (
    policy("namespace"),
    policy("mine", selector=(("app", "b"),)),
    policy("others", selector=(("app", "x"),)),
    policy("elsewhere", "far"),
    policy("mesh", "istio-system"),
    policy("mesh-mine", "istio-system", selector=(("app", "b"),)),
    policy("gateway", **ref("Gateway", "wp")),
    policy("other-gateway", **ref("Gateway", "wp2")),
    policy("far-gateway", "far", **ref("Gateway", "wp")),
    policy("class", "istio-system", **ref("GatewayClass", "istio-waypoint")),
    policy("class-elsewhere", **ref("GatewayClass", "istio-waypoint")),
    policy("service-b", **ref("Service", "b")),
    policy("service-c", **ref("Service", "c")),
    policy("far-b", "far", **ref("Service", "b")),
)


def test_a_sidecar_has_the_policies_that_select_its_workload() -> None:
    """Of its namespace and the root's; never those with targetRefs."""
    config = sidecar_config(topology(*POLICIES), B1)

    assert [p.name for p in config.authorization] == ["namespace", "mine", "mesh", "mesh-mine"]
    assert len(L7View(config).policies().names) == 4


def test_a_waypoint_has_those_that_name_it_its_class_or_its_services() -> None:
    """Selectors are ztunnel's; and each service is judged by its own."""
    view = L7View(waypoint_config(topology(*POLICIES, services=(B, C)), "wp", "shop", (B, C)))

    assert view.policies("shop/b.shop.svc.cluster.local").names == (
        "shop/gateway", "istio-system/class", "shop/service-b",
    )  # fmt: skip
    assert view.policies("shop/c.shop.svc.cluster.local").names[-1] == "shop/service-c"
    assert view.policies(None).names == ("shop/gateway", "istio-system/class")


def test_policies_reach_the_proxy_with_their_meaning() -> None:
    """Through JSON and back."""
    deny = policy("no", action=Action.DENY, rules=(Rule(),))
    view = L7View.parse(json.loads(json.dumps(l7_view(topology(deny), workload=B1))))
    peer = Connection(source_ip="10.0.0.1", destination_ip="10.0.1.3", destination_port=8080)

    verdict = view.policies().judge(peer).fixed
    assert verdict is not None
    assert (verdict.allowed, verdict.policy) == (False, "shop/no")


def peers(mode: Mode, namespace: str, **more: object) -> PeerAuthentication:
    return PeerAuthentication(name="p", namespace=namespace, mode=mode, **more)  # type: ignore[arg-type]


MINE = (("app", "b"),)


@pytest.mark.parametrize(
    ("resources", "on_8080", "on_9090"),
    [
        ([], Mode.PERMISSIVE, Mode.PERMISSIVE),
        ([peers(Mode.STRICT, "istio-system")], Mode.STRICT, Mode.STRICT),
        ([peers(Mode.STRICT, "istio-system"), peers(Mode.DISABLE, "shop")], Mode.DISABLE, Mode.DISABLE),
        ([peers(Mode.STRICT, "shop"), peers(Mode.UNSET, "shop", selector=MINE)], Mode.STRICT, Mode.STRICT),
        (
            [peers(Mode.STRICT, "shop", selector=MINE, port_modes=((9090, Mode.DISABLE),))],
            Mode.STRICT,
            Mode.DISABLE,
        ),
        ([peers(Mode.STRICT, "istio-system", selector=MINE)], Mode.PERMISSIVE, Mode.PERMISSIVE),
        ([peers(Mode.STRICT, "far")], Mode.PERMISSIVE, Mode.PERMISSIVE),
        ([peers(Mode.STRICT, "shop"), peers(Mode.DISABLE, "shop")], Mode.STRICT, Mode.STRICT),
    ],
)
def test_modes_of_a_workloads_ports(resources: list[PeerAuthentication], on_8080: Mode, on_9090: Mode) -> None:
    """Workload before namespace before mesh, the oldest of each; DISABLE is itself at a sidecar."""
    view = L7View(sidecar_config(topology(*resources), B1))

    assert (view.mode(8080), view.mode(9090)) == (on_8080, on_9090)


def test_a_waypoint_is_always_strict() -> None:
    """PeerAuthentication does not concern it (facts/hbone 3.6)."""
    resources = [peers(Mode.DISABLE, "shop")]
    assert L7View(waypoint_config(topology(*resources), "wp", "shop", (B,))).mode(15008) is Mode.STRICT


def test_inbound_protocols_by_the_workloads_port() -> None:
    """Where two services say different things the bytes must tell."""
    assert L7View(sidecar_config(topology(), B1)).inbound_protocols == {8080: "http"}
    assert L7View(sidecar_config(topology(services=(B, C)), B1)).inbound_protocols == {8080: ""}


def test_clusters_are_named_for_where_they_are_used() -> None:
    """A sidecar's are outbound, be it the service's own endpoint."""
    key = "shop/b.shop.svc.cluster.local"
    of_sidecar = L7View(sidecar_config(topology(), B1)).cluster(key, 80)
    of_waypoint = L7View(waypoint_config(topology(), "wp", "shop", (B,))).cluster(key, 80)

    assert of_sidecar is not None and of_sidecar.name == "outbound|80||b.shop.svc.cluster.local"
    assert of_waypoint is not None and of_waypoint.name == "inbound-vip|80|http|b.shop.svc.cluster.local"


def destination(name: str, namespace: str, host: str = "b.shop.svc.cluster.local", **more: object) -> DestinationRule:
    return DestinationRule(name=name, namespace=namespace, host=host, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rules", "chosen"),
    [
        ([destination("root", "istio-system"), destination("own", "shop")], "own"),
        ([destination("root", "istio-system"), destination("far", "far")], "root"),
        ([destination("far", "far")], None),
        ([destination("wide", "shop", "*.shop.svc.cluster.local"), destination("exact", "shop", "b")], "exact"),
        ([destination("all", "shop", "*"), destination("wide", "shop", "*.cluster.local")], "wide"),
        ([destination("hidden", "istio-system", export_to=(".",))], None),
        ([destination("selected", "shop", selector=(("app", "x"),))], None),
        ([destination("selected", "shop", selector=(("app", "b"),))], "selected"),
    ],
)
def test_which_destination_rule_counts(rules: list[DestinationRule], chosen: str | None) -> None:
    """The client's namespace before the service's before the root's; the most exact host in each."""
    view = L7View(sidecar_config(topology(*rules), B1))
    rule = view.destination_rule(view.services["shop/b.shop.svc.cluster.local"])

    assert (rule.name if rule else None) == chosen


def test_a_clients_rule_goes_before_the_services() -> None:
    """So a client can have its own limits."""
    client = dataclasses.replace(B1, name="x", namespace="far")
    view = L7View(sidecar_config(topology(destination("b", "shop"), destination("own", "far")), client))
    rule = view.destination_rule(view.services["shop/b.shop.svc.cluster.local"])

    assert rule is not None and rule.name == "own"


def test_traffic_policies_merge_and_a_ports_inherits_nothing() -> None:
    """Subset over destination field by field; a port's settings stand alone, as Istio documents."""
    budget, outliers = RetryBudget(share=0.5), OutlierDetection(consecutive_5xx=1)
    whole = TrafficPolicy(
        load_balancing=LoadBalancing(simple=Balance.RANDOM), connection_pool=ConnectionPool(max_requests=7),
        retry_budget=budget, ports=(PortPolicy(port=443, policy=TrafficPolicy(outlier_detection=outliers)),),
    )  # fmt: skip
    subset = TrafficPolicy(load_balancing=LoadBalancing(simple=Balance.ROUND_ROBIN))
    service = dataclasses.replace(B, ports=(*B.ports, ServicePort(port=443, target_port=9090, protocol="http")))
    rule = destination("b", "shop", policy=whole, subsets=(Subset(name="v1", policy=subset),))
    view = L7View(sidecar_config(topology(rule, services=(service,)), B1))

    def merged(port: int, name: str = "") -> TrafficPolicy:
        cluster = view.cluster("shop/b.shop.svc.cluster.local", port, name)
        assert cluster is not None
        return cluster.policy

    assert merged(80) == dataclasses.replace(whole, ports=())
    assert merged(80, "v1") == dataclasses.replace(whole, ports=(), load_balancing=subset.load_balancing)
    assert merged(443) == TrafficPolicy(outlier_detection=outliers, retry_budget=budget)


def test_the_configuration_survives_json_whole() -> None:
    """Every resource of it, in order."""
    resources = (*POLICIES, peers(Mode.STRICT, "shop"), VirtualService(name="v", namespace="shop", hosts=("b",)))
    for config in (
        sidecar_config(topology(*resources, destination("b", "shop", subsets=(Subset(name="v"),))), B1),
        waypoint_config(topology(*resources), "wp", "shop", (B,)),
    ):
        assert from_plain(L7Config, json.loads(json.dumps(to_plain(config)))) == config
    assert l7_view(topology(), waypoint=("shop", "wp"), services=(B,))["role"] == Role.WAYPOINT


def test_hosts_and_exports() -> None:
    """The longer pattern is the more exact; `.` means the resource's own namespace."""
    assert host_rank("b.c", "b.c") > host_rank("*.c", "b.c") > host_rank("*", "b.c") > 0
    assert host_rank("*.c", ".c") == host_rank("x", "b.c") == 0
    assert exported((), "a", "b") and exported(("*",), "a", "b") and exported(("b",), "a", "b")
    assert exported((".",), "a", "a") and not exported((".",), "a", "b") and not exported(("c",), "a", "b")
