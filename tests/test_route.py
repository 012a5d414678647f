"""Hops and inbound targets; the tables restate ztunnel's own (`build_request_*`, `test_find_inbound_upstream`)."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from planes.mesh.route import Flag, Hop, HopKind, inbound_target, next_hop, parse_authority
from planes.mesh.view import MeshView
from tests.meshviews import behind, gateway, service, view, workload

SOURCE = workload("source", "127.0.0.1", "::1", node="local-node")
WAYPOINT = workload("waypoint", "127.0.0.10", node="local-node")
DUAL_WAYPOINT = workload("dual", "127.0.0.11", "ff06::c5")
BALANCER = {"routingPreferences": [], "healthPolicy": "OnlyHealthy"}


def hop(to: tuple[str, int], *, workloads: list[dict] = (), services: list[dict] = (), draw: float = 0.5) -> Hop:
    mesh = view([SOURCE, WAYPOINT, DUAL_WAYPOINT, *workloads], list(services))
    return next_hop(mesh, mesh.local("default", "source"), to, draw)


def brief(found: Hop) -> tuple:
    return found.kind.value, found.dial, found.authority


POD = "127.0.0.2"
DEFINED = service("s", "127.0.0.3")


@pytest.mark.parametrize(
    ("to", "workloads", "services", "expected"),
    [
        (("1.2.3.4", 80), [], [], ("tcp", ("1.2.3.4", 80), None)),
        ((POD, 80), [workload("p", POD, node="remote")], [], ("tcp", (POD, 80), None)),
        ((POD, 80), [workload("p", POD, protocol="HBONE")], [], ("hbone", (POD, 15008), f"{POD}:80")),
        ((POD, 80), [workload("p", POD, protocol="HBONE", node="local-node")], [],
         ("hbone", (POD, 15008), f"{POD}:80")),
        ((POD, 80), [workload("p", POD, waypoint=gateway("/127.0.0.10"))], [],
         ("hbone", ("127.0.0.10", 15008), f"{POD}:80")),
        (("ff06::c3", 80), [workload("p", POD, "ff06::c3", waypoint=gateway("/127.0.0.11"))], [],
         ("hbone", ("127.0.0.11", 15008), "[ff06::c3]:80")),
        (("127.0.0.3", 80), [], [service("s", "127.0.0.3", waypoint=gateway("/127.0.0.10"))],
         ("hbone", ("127.0.0.10", 15008), "127.0.0.3:80")),
        (("127.0.0.3", 80), [], [DEFINED], ("refuse", None, None)),
        (("127.0.0.3", 81), [workload("p", POD, **behind("s"))], [DEFINED], ("refuse", None, None)),
        (("127.0.0.3", 80), [workload("p", POD, network="remote", **behind("s"))], [DEFINED], ("refuse", None, None)),
        (("127.0.0.3", 80),
         [workload("p", POD, **behind("s", {"80": 1234})), workload("q", "127.0.0.4", **behind("s", {"8080": 9999}))],
         [service("s", "127.0.0.3") | {"ports": {"80": 0, "8080": 0}}], ("tcp", (POD, 1234), None)),
        ((POD, 80), [workload("p", POD, networkMode="HostNetwork", **behind("s"))], [DEFINED],
         ("tcp", (POD, 80), None)),
        (("127.0.0.3", 80), [workload("p", POD, networkMode="HostNetwork", **behind("s"))], [DEFINED],
         ("tcp", (POD, 8080), None)),
        (("1.2.3.4", 80), [], [service("s", "1.2.3.4", loadBalancer={"mode": "Passthrough", **BALANCER})],
         ("tcp", ("1.2.3.4", 80), None)),
        (("1.2.3.4", 80), [],
         [service("s", "1.2.3.4", loadBalancer={"mode": "Passthrough", **BALANCER}, waypoint=gateway("/127.0.0.10"))],
         ("hbone", ("127.0.0.10", 15008), "1.2.3.4:80")),
    ],
    ids=["unknown destination", "pod, tcp", "pod, hbone", "pod on the same node takes hbone too", "pod's waypoint",
         "pod's waypoint, by its IPv6", "service's waypoint", "service without endpoints", "undeclared port",
         "other network", "named port of the one endpoint that has it", "host network, by address",
         "host network, by service", "passthrough", "passthrough with waypoint"],
)  # fmt: skip
def test_the_hop_is_ztunnels(to: tuple[str, int], workloads: list[dict], services: list[dict], expected: tuple) -> None:
    """The same view and destination give the hop that ztunnel's own table gives."""
    assert brief(hop(to, workloads=workloads, services=services)) == expected


def test_the_sources_own_waypoint_is_not_used() -> None:
    """Waypoints belong to destinations."""
    mesh = view([SOURCE | {"waypoint": gateway("/127.0.0.10")}, WAYPOINT])

    assert next_hop(mesh, mesh.local("default", "source"), ("9.9.9.9", 80), 0.0).kind is HopKind.TCP


def test_service_traffic_never_uses_a_workloads_waypoint() -> None:
    """And the other way round: what the client addressed decides."""
    pod = workload("p", POD, protocol="HBONE", waypoint=gateway("/127.0.0.10"), **behind("s"))

    assert hop(("127.0.0.3", 80), workloads=[pod], services=[DEFINED]).dial == (POD, 15008)
    assert hop((POD, 8080), workloads=[pod], services=[DEFINED]).dial == ("127.0.0.10", 15008)


def test_a_waypoint_is_not_sent_through_itself() -> None:
    """A waypoint behind a ztunnel reaches the workload it serves directly."""
    pod = workload("p", POD, protocol="HBONE", waypoint=gateway("/127.0.0.10"))
    mesh = view([WAYPOINT, pod])

    assert next_hop(mesh, mesh.local("default", "waypoint"), (POD, 80), 0.0).dial == (POD, 15008)


@pytest.mark.parametrize("where", ["/127.0.0.99", "default/nobody.default.svc.cluster.local"])
def test_a_waypoint_that_is_not_known_refuses(where: str) -> None:
    """Going round it would go round its policies."""
    found = hop(("127.0.0.3", 80), services=[service("s", "127.0.0.3", waypoint=gateway(where))])

    assert (found.kind, found.flag) == (HopKind.REFUSE, Flag.CONNECT)
    assert "is not known" in found.reason


def test_a_waypoint_named_by_host_is_balanced_and_proves_its_own_identity() -> None:
    """Authority is the original address; who must answer is the waypoint, and the log names the asked service."""
    wp = workload("wp", "127.0.0.20", protocol="HBONE", **behind("wp"))
    named = service("s", "127.0.0.3", waypoint=gateway("default/wp.default.svc.cluster.local"))
    found = hop(("127.0.0.3", 80), workloads=[wp], services=[named, service("wp") | {"ports": {"15008": 15008}}])

    assert brief(found) == ("hbone", ("127.0.0.20", 15008), "127.0.0.3:80")
    assert found.expected == ("spiffe://cluster.local/ns/default/sa/sa-wp",)
    assert (found.destination.name, found.service.name) == ("wp", "s")


def test_weighted_waypoints_share_by_weight() -> None:
    """Three quarters of the draws go to the one of weight 3."""
    shares = {"127.0.0.10": 3, "127.0.0.11": 1}
    weighted = [{"destination": gateway(f"/{ip}"), "weight": weight} for ip, weight in shares.items()]
    canary = service("s", "127.0.0.3", weightedWaypoints=weighted)

    dialled = [hop(("127.0.0.3", 80), services=[canary], draw=d / 8).dial[0] for d in range(8)]
    assert dialled == ["127.0.0.10"] * 6 + ["127.0.0.11"] * 2


def test_the_server_may_prove_the_workloads_or_the_services_identity() -> None:
    """Expected are the workload's SPIFFE URI and the service's; the client proves its own."""
    pod = workload("p", POD, protocol="HBONE", **behind("s"))
    named = service("s", "127.0.0.3", subjectAltNames=["spiffe://cluster.local/ns/default/sa/alias"])
    found = hop(("127.0.0.3", 80), workloads=[pod], services=[named])

    assert found.expected == ("spiffe://cluster.local/ns/default/sa/alias", "spiffe://cluster.local/ns/default/sa/sa-p")
    assert str(found.source_identity) == "spiffe://cluster.local/ns/default/sa/sa-source"


@pytest.mark.parametrize("port", [15001, 15006, 15008])
@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_loopback_calls_to_the_proxys_ports_are_refused(ip: str, port: int) -> None:
    """A relay to itself would never end."""
    assert hop((ip, port)).kind is HopKind.REFUSE


@pytest.mark.parametrize(
    ("families", "to", "dial"),
    [
        ("IPv6", "127.0.0.3", "ff06::c3"),
        ("IPv4", "127.0.0.3", POD),
        ("Dual", "127.0.0.3", POD),
        ("Dual", "::3", "ff06::c3"),
    ],
)
def test_the_address_family_is_the_services_else_the_callers(families: str, to: str, dial: str) -> None:
    """A dual-stack endpoint is dialled in the family that the service wants, else the one that was addressed."""
    pod = workload("p", POD, "ff06::c3", protocol="HBONE", **behind("s"))

    both = service("s", "127.0.0.3", "::3", ipFamilies=families)
    assert hop((to, 80), workloads=[pod], services=[both]).dial == (dial, 15008)


def balanced(mode: str, preferences: list[str], places: list[tuple[str, str]]) -> set[str]:
    """Names of the endpoints that 100 draws reach, for endpoints at (zone, node)."""
    source = SOURCE | {"locality": {"zone": "z1"}, "node": "n1"}
    pods = [
        workload(f"e{i}", f"10.0.0.{i}", node=node, locality={"zone": zone}, **behind("s"))
        for i, (zone, node) in enumerate(places)
    ]
    balancer = {"mode": mode, "routingPreferences": preferences, "healthPolicy": "OnlyHealthy"}
    mesh = view([source, *pods], [service("s", "127.0.0.3", loadBalancer=balancer)])
    hops = [next_hop(mesh, mesh.local("default", "source"), ("127.0.0.3", 80), d / 100) for d in range(100)]
    return {h.destination.name if h.destination else h.kind.value for h in hops}


@pytest.mark.parametrize(
    ("mode", "preferences", "places", "reached"),
    [
        ("Standard", [], [("z1", "n1"), ("z2", "n2")], {"e0", "e1"}),
        ("Strict", ["Node"], [("z1", "n1"), ("z1", "n2")], {"e0"}),
        ("Strict", ["Node"], [("z1", "n2")], {"refuse"}),
        ("Failover", ["Zone", "Node"], [("z1", "n2"), ("z2", "n1"), ("z2", "n3")], {"e0"}),
        ("Failover", ["Zone"], [("z2", "n2"), ("z2", "n3")], {"e0", "e1"}),
        ("Failover", ["Network", "Region", "Zone"], [("z1", "n2"), ("z2", "n3")], {"e0"}),
    ],
)
def test_load_balancing_keeps_to_the_best_ranked(
    mode: str, preferences: list[str], places: list[tuple[str, str]], reached: set[str]
) -> None:
    """Strict wants every preference; Failover takes the best rank, counted up to the first mismatch."""
    assert balanced(mode, preferences, places) == reached


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
def test_endpoints_share_by_capacity(capacities: list[int]) -> None:
    """Evenly spaced draws reach each endpoint exactly in proportion to its capacity."""
    pods = [workload(f"e{i}", f"10.0.0.{i}", capacity=c, **behind("s")) for i, c in enumerate(capacities)]
    mesh = view([SOURCE, *pods], [DEFINED])
    total = sum(capacities)
    source = mesh.local("default", "source")
    reached = [next_hop(mesh, source, ("127.0.0.3", 80), (d + 0.5) / total).destination.name for d in range(total)]

    assert [reached.count(f"e{i}") for i in range(len(capacities))] == capacities


def test_an_endpoint_of_the_own_network_outranks_every_remote_one() -> None:
    """With Network as the first preference, even one of another region; remote ones are for when none is left."""
    source = SOURCE | {"locality": {"region": "r1", "zone": "z1"}}
    far = workload("far", "10.0.0.1", locality={"region": "r2"}, **behind("s"))
    remote = workload("remote", "10.0.0.2", network="n2", locality={"region": "r1", "zone": "z1"}, **behind("s"))
    balancer = {"mode": "Failover", "routingPreferences": ["Network", "Region", "Zone"], "healthPolicy": "OnlyHealthy"}
    mesh = view([source, far, remote], [service("s", "127.0.0.3", loadBalancer=balancer)])
    hops = [next_hop(mesh, mesh.local("default", "source"), ("127.0.0.3", 80), d / 10) for d in range(10)]

    assert {h.dial for h in hops} == {("10.0.0.1", 8080)}


@given(st.floats(0, 1, exclude_max=True))
@example(math.nextafter(1, 0))
def test_every_draw_reaches_an_endpoint(draw: float) -> None:
    """Also the largest draw below 1: its product with the sum of capacities stays below the sum."""
    pods = [workload(f"e{i}", f"10.0.0.{i}", capacity=2**31 - 1, **behind("s")) for i in range(3)]

    assert hop(("127.0.0.3", 80), workloads=pods, services=[DEFINED], draw=draw).kind is HopKind.TCP


# -- workloads known by host name

NAMED = "files.example.com"


def named_hop(names: dict[str, tuple[str, ...]], *, to: str = "127.0.0.3", draw: float = 0.5, **extra: object) -> Hop:
    pod = workload("p", hostname=NAMED, protocol="HBONE", **behind("s"))
    mesh = view([SOURCE, pod], [service("s", "127.0.0.3", "::3", **extra)])
    return next_hop(mesh, mesh.local("default", "source"), (to, 80), draw, names=names)


def test_a_host_name_is_asked_for_before_there_is_a_hop() -> None:
    """Whoever resolves names asks again with the addresses; a name without any is refused for good."""
    asked = named_hop({})
    assert (asked.kind, asked.unresolved) == (HopKind.REFUSE, NAMED)

    found = named_hop({NAMED: ("10.0.0.9",)})
    assert brief(found) == ("hbone", ("10.0.0.9", 15008), "10.0.0.9:8080")
    assert found.expected == ("spiffe://cluster.local/ns/default/sa/sa-p",)

    nothing = named_hop({NAMED: ()})
    assert (nothing.kind, nothing.unresolved) == (HopKind.REFUSE, "") and "has no address" in nothing.reason


def test_any_of_a_names_addresses_is_taken_of_the_callers_family() -> None:
    """By chance, each as often; the other family only where there is none."""
    addresses = ("10.0.0.1", "10.0.0.2", "fd00::1")
    taken = [named_hop({NAMED: addresses}, draw=d / 1000).dial[0] for d in range(1000)]

    assert set(taken) == {"10.0.0.1", "10.0.0.2"} and 400 < taken.count("10.0.0.1") < 600
    assert named_hop({NAMED: addresses}, to="::3").dial == ("fd00::1", 15008)
    assert named_hop({NAMED: ("fd00::1",)}).dial == ("fd00::1", 15008)


@pytest.mark.parametrize("addresses", [(), ("127.0.0.40",)])
def test_a_waypoint_may_be_a_workload_named_by_its_host_name(addresses: tuple[str, ...]) -> None:
    """With addresses these count and nothing is resolved, as in ztunnel; the authority is what was called."""
    wp = workload("wp", *addresses, hostname=NAMED)
    pod = workload("p", POD, waypoint=gateway(f"default/{NAMED}"))
    mesh = view([SOURCE, wp, pod])
    names = {} if addresses else {NAMED: ("127.0.0.40",)}
    found = next_hop(mesh, mesh.local("default", "source"), (POD, 80), 0.5, names=names)

    assert brief(found) == ("hbone", ("127.0.0.40", 15008), f"{POD}:80")


# -- inbound

CLIENT_IP, SERVER_IP, WAYPOINT_IP = "10.0.0.1", "10.0.0.2", "10.0.0.3"
SERVER_VIP, WAYPOINT_VIP = "10.10.0.1", "10.10.0.2"
HOST = "server.default.svc.cluster.local"
TUNNEL = {"protocol": "PROXY", "port": 15088}


def inbound_mesh(attached: str = "", via: str = "", tunnel: dict | None = None, **server: object) -> MeshView:
    """`attached` says who has the waypoint at `via`: the `service` or the `workload`."""
    held = {"waypoint": gateway(f"/{via}")}
    tunnelled = {"applicationTunnel": tunnel} if tunnel else {}
    waypoint = workload("waypoint", WAYPOINT_IP, **behind("waypoint"), **tunnelled)
    target = workload("server", SERVER_IP, **behind("server"), **(held if attached == "workload" else {}))
    services = [
        service("waypoint", WAYPOINT_VIP),
        service("server", SERVER_VIP, **(held if attached == "service" else {})) | server,
    ]
    return view([workload("client", CLIENT_IP), target, waypoint], services)


@pytest.mark.parametrize(
    ("mesh", "dialled", "authority", "status", "port"),
    [
        (inbound_mesh(), SERVER_IP, f"{SERVER_IP}:8080", 200, 8080),
        (inbound_mesh(), SERVER_IP, f"{HOST}:80", 200, 8080),
        (inbound_mesh("workload", WAYPOINT_IP), WAYPOINT_IP, f"{SERVER_IP}:8080", 200, 8080),
        (inbound_mesh("workload", WAYPOINT_VIP), WAYPOINT_IP, f"{SERVER_IP}:8080", 200, 8080),
        (inbound_mesh("workload", WAYPOINT_VIP, TUNNEL), WAYPOINT_IP, f"{SERVER_IP}:8080", 200, 15088),
        (inbound_mesh("service", WAYPOINT_IP), WAYPOINT_IP, f"{SERVER_VIP}:8080", 200, 8080),
        (inbound_mesh("service", WAYPOINT_VIP), WAYPOINT_IP, f"{SERVER_VIP}:8080", 200, 8080),
        (inbound_mesh("service", WAYPOINT_VIP, TUNNEL), WAYPOINT_IP, f"{SERVER_VIP}:8080", 200, 15088),
        (inbound_mesh(), SERVER_IP, f"{CLIENT_IP}:8080", 400, 0),
        (inbound_mesh(), WAYPOINT_IP, f"{CLIENT_IP}:8080", 400, 0),
        (inbound_mesh("service", WAYPOINT_IP), WAYPOINT_IP, f"{SERVER_IP}:8080", 400, 0),
        (inbound_mesh("workload", WAYPOINT_IP), WAYPOINT_IP, f"{SERVER_VIP}:8080", 400, 0),
        (inbound_mesh(), SERVER_IP, "nobody.default.svc.cluster.local:80", 503, 0),
        (inbound_mesh(), SERVER_IP, f"{HOST}:81", 503, 0),
        (inbound_mesh(ports={"80": 0}), SERVER_IP, f"{HOST}:80", 503, 0),
        (inbound_mesh(ports={"80": 15008}), SERVER_IP, f"{HOST}:80", 503, 0),
        (inbound_mesh(), SERVER_IP, f"{SERVER_IP}:15006", 503, 0),
        (inbound_mesh(), SERVER_IP, f"{SERVER_IP}:15001", 503, 0),
        (inbound_mesh(), SERVER_IP, SERVER_IP, 400, 0),
        (inbound_mesh(), SERVER_IP, "", 400, 0),
        (inbound_mesh(), SERVER_IP, None, 400, 0),
        (inbound_mesh(), SERVER_IP, f"{SERVER_IP}:http", 400, 0),
        (inbound_mesh(), "10.0.0.77", "10.0.0.77:8080", 503, 0),
    ],
)
def test_what_an_authority_means(mesh: MeshView, dialled: str, authority: str | None, status: int, port: int) -> None:
    """ztunnel's table of acceptable authorities, and the status for each that is not."""
    found = inbound_target(mesh, mesh.workload_at("", dialled), authority, dialled)

    assert (found.status, found.port) == (status, port)
    assert bool(found.reason) == (status != 200)


def test_a_named_port_is_looked_up_at_the_endpoint() -> None:
    """With a service target of 0, only the endpoint's own map knows."""
    server = workload("server", SERVER_IP, **behind("server", {"80": 9090}))
    mesh = view([server], [service("server") | {"ports": {"80": 0}}])

    assert inbound_target(mesh, mesh.workloads[0], f"{HOST}:80", SERVER_IP).port == 9090


def test_a_tunnel_is_told_the_original_destination() -> None:
    """By address the authority itself; by name a VIP of the service with the service's port."""
    tunnelled = workload("server", SERVER_IP, applicationTunnel=TUNNEL, **behind("server"))
    mesh = view([tunnelled], [service("server", "fd00::1", SERVER_VIP)])
    server = mesh.workloads[0]

    assert inbound_target(mesh, server, "10.9.9.9:77", SERVER_IP).proxy_target == ("10.9.9.9", 77)
    assert inbound_target(mesh, server, f"{HOST}:80", SERVER_IP).proxy_target == (SERVER_VIP, 80)


def test_the_service_of_an_address_is_guessed_for_the_log() -> None:
    """The peer's hint counts only if it names a service of this workload; else the target port tells."""
    mesh = inbound_mesh()
    server = mesh.workload_at("", SERVER_IP)

    def guess(port: int, hint: str | None = None) -> str | None:
        found = inbound_target(mesh, server, f"{SERVER_IP}:{port}", SERVER_IP, hint).service
        return found and found.name

    assert (guess(8080), guess(9999), guess(9999, HOST), guess(9999, "waypoint.default.svc.cluster.local")) == (
        "server", None, "server", None,
    )  # fmt: skip


@pytest.mark.parametrize(
    "text", ["::1:80", "[::1]", "[host]:80", "a b:80", ":80", "h:0", "h:65536", "h:+80", "h:\u0668", "u@h:80"]
)
def test_a_malformed_authority_is_refused(text: str) -> None:
    """A port is obligatory, IPv6 needs brackets, and only ASCII digits are a number."""
    with pytest.raises(ValueError, match="authority"):
        parse_authority(text)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_an_authority_that_a_hop_writes_is_read_back(address: object, port: int) -> None:
    """What `next_hop` puts in `:authority`, `parse_authority` takes apart."""
    text = str(address)

    assert parse_authority(f"[{text}]:{port}" if ":" in text else f"{text}:{port}") == (text, port, True)
