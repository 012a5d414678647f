"""Which endpoint takes a request, which stays away, and how many may be under way."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planes.l7.balance import Balancer, Host, cookie, cookie_to_set, hosts
from planes.l7.circuit import Circuit, OutlierDetector
from planes.l7.message import Request
from planes.mesh.view import MeshView
from testbed.model.traffic import Balance, ConnectionPool, HashOn, LoadBalancing, OutlierDetection

REQUEST = Request(b"GET", b"b", b"/", [])


def mesh(count: int, *, weights: tuple[int, ...] = (), **balancer: object) -> MeshView:
    def workload(number: int, **more: object) -> dict:
        return {
            "uid": f"c//Pod/n/w{number}", "name": f"w{number}", "namespace": "n", "serviceAccount": "s",
            "trustDomain": "t", "workloadIps": [f"10.0.0.{number + 1}"], "protocol": "HBONE",
            "capacity": weights[number] if weights else 1, "locality": {"zone": f"z{number % 2}"},
            "node": f"n{number}", "services": {"n/b": {"80": 8080}}, **more,
        }  # fmt: skip

    service = {"name": "b", "namespace": "n", "hostname": "b", "vips": [], "ports": {"80": 8080}, **balancer}
    return MeshView.parse({"workloads": [workload(n) for n in range(count)], "services": [service], "policies": []})


def balancer(count: int, simple: Balance | None = None, *, weights: tuple[int, ...] = (), **policy: object) -> Balancer:
    view = mesh(count, weights=weights)
    members = hosts(view.endpoints(view.services[0]), view.services[0], 80, None)
    return Balancer(members, LoadBalancing(simple=simple, **policy))  # type: ignore[arg-type]


def names(picked: list[Host | None]) -> str:
    return "".join(host.uid[-1] if host is not None else "-" for host in picked)


def test_round_robin_takes_turns() -> None:
    """Each once before any twice."""
    b = balancer(3, Balance.ROUND_ROBIN)
    assert names([b.pick(REQUEST, lambda: 0.9) for _ in range(7)]) == "0120120"


def test_round_robin_by_weight_is_smooth() -> None:
    """In every round each has its share, and the heavy one not all at once."""
    b = balancer(3, Balance.ROUND_ROBIN, weights=(3, 1, 1))
    picked = names([b.pick(REQUEST, lambda: 0.0) for _ in range(10)])

    assert Counter(picked[:5]) == Counter(picked[5:]) == {"0": 3, "1": 1, "2": 1}
    assert "000" not in picked[:5]


def test_least_request_takes_the_freer_of_two() -> None:
    """The default; it may draw one host twice, as Envoy's does."""
    b = balancer(4)
    b.members[0].active = 5

    def picked(*draws: float) -> Host | None:
        return b.pick(REQUEST, iter(draws).__next__)

    assert picked(0.0, 0.3) is b.members[1]
    assert picked(0.3, 0.0) is b.members[1]
    assert picked(0.0, 0.1) is b.members[0]
    assert picked(0.6, 0.3) is b.members[2]


def test_least_request_spreads_open_requests() -> None:
    """With requests that stay, no host holds many more than its share."""
    b, draw = balancer(5), random.Random(7).random
    for _ in range(100):
        host = b.pick(REQUEST, draw)
        assert host is not None
        host.active += 1

    assert max(h.active for h in b.members) - min(h.active for h in b.members) <= 4


@pytest.mark.parametrize("simple", [Balance.RANDOM, Balance.LEAST_REQUEST])
def test_capacity_is_a_weight(simple: Balance) -> None:
    """Also where the choice is by chance."""
    b, draw = balancer(2, simple, weights=(3, 1)), random.Random(1).random
    counts = Counter(names([b.pick(REQUEST, draw) for _ in range(4000)]))

    assert counts["0"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_a_retry_looks_elsewhere_where_it_can() -> None:
    """Five draws, then it takes what comes; one host alone is always taken."""
    b = balancer(2, Balance.RANDOM)
    first, second = b.members

    assert b.pick(REQUEST, iter([0.1, 0.2, 0.9]).__next__, tried=[first]) is second
    assert b.pick(REQUEST, lambda: 0.1, tried=[first]) is first
    alone = balancer(1)
    assert alone.pick(REQUEST, lambda: 0.0, tried=alone.members) is alone.members[0]
    assert balancer(0).pick(REQUEST, lambda: 0.0) is None


def request(path: str = "/", **fields: str) -> Request:
    return Request(b"GET", b"b", path.encode(), [(k.replace("_", "-").encode(), v.encode()) for k, v in fields.items()])


@pytest.mark.parametrize(
    ("on", "make"),
    [
        (HashOn(header="x-user"), lambda key: (request(x_user=key), "10.0.0.9")),
        (HashOn(cookie="c"), lambda key: (request(cookie=f'a=1; c="{key}"'), "10.0.0.9")),
        (HashOn(query="q"), lambda key: (request(f"/?a=1&q={key}"), "10.0.0.9")),
        (HashOn(source_ip=True), lambda key: (request(), key)),
    ],
)
def test_one_key_falls_on_one_host_and_keys_spread(on: HashOn, make: object) -> None:
    """And a host that goes takes only its own keys along."""
    b = balancer(4, hash_on=on)

    def where() -> list[Host | None]:
        asked = [make(f"k{i}") for i in range(300)]  # type: ignore[operator]
        return [b.pick(r, lambda: 0.5, source_ip=ip) for r, ip in asked]

    before = where()
    assert before == where()
    assert min(Counter(names(before)).values()) > 30
    b.members[2].ejected = True
    b.ejection_changed()
    after = where()
    assert all(a is b for a, b in zip(after, before, strict=True) if b is not None and not b.ejected)
    assert b.members[2] not in after


def test_a_request_without_the_key_is_spread_by_chance() -> None:
    """As Envoy does."""
    b = balancer(4, hash_on=HashOn(header="x-user"))
    assert names([b.pick(REQUEST, lambda d=d: d) for d in (0.0, 0.3, 0.6, 0.9)]) == "0123"


def test_a_cookie_is_given_to_clients_without_one() -> None:
    """Where the rule has a ttl; 0 is a session's."""
    given = cookie_to_set(HashOn(cookie="c", cookie_ttl_s=60.0, cookie_path="/"), REQUEST, lambda: 0.5)
    assert given is not None
    value, field = given
    assert field == b'c="' + value + b'"; Max-Age=60; Path=/; HttpOnly'
    assert cookie(request(cookie=f"c={value.decode()}"), b"c") == value
    assert cookie_to_set(HashOn(cookie="c", cookie_ttl_s=0.0), request(cookie="c=1"), lambda: 0.5) is None
    assert cookie_to_set(HashOn(cookie="c"), REQUEST, lambda: 0.5) is None


FAILOVER = {"mode": "Failover", "routingPreferences": ["Network", "Region", "Zone"], "healthPolicy": "OnlyHealthy"}
STRICT = {"mode": "Strict", "routingPreferences": ["Node"], "healthPolicy": "OnlyHealthy"}


def test_the_nearest_tier_takes_all_until_it_is_gone() -> None:
    """`prefer-same-zone`: endpoints of the proxy's zone, else the others."""
    view = mesh(4, loadBalancer=FAILOVER)
    b = Balancer(hosts(view.endpoints(view.services[0]), view.services[0], 80, view.workloads[1]))
    draws = [0.0, 0.3, 0.6, 0.9]

    assert set(names([b.pick(REQUEST, lambda d=d: d) for d in draws])) == {"1", "3"}  # type: ignore[misc]
    for host in b.members:
        host.ejected = host.uid[-1] in "13"
    b.ejection_changed()
    assert set(names([b.pick(REQUEST, lambda d=d: d) for d in draws])) == {"0", "2"}  # type: ignore[misc]


def test_strict_locality_has_no_other_tier() -> None:
    """`internalTrafficPolicy: Local`: the own node's or none; the port must be known too."""
    view = mesh(3, loadBalancer=STRICT)
    service = view.services[0]

    assert names(list(hosts(view.endpoints(service), service, 80, view.workloads[2]))) == "2"
    assert hosts(view.endpoints(service), service, 81, view.workloads[2]) == ()


def test_a_circuit_admits_up_to_its_limits() -> None:
    """And again once something is over; the refusals are counted."""
    c = Circuit(ConnectionPool(max_requests=2, max_pending_requests=0, max_connections=0))

    assert [c.admit(), c.admit(), c.admit(), c.wait()] == [True, True, False, False]
    c.done()
    assert c.admit()
    assert c.overflows == 2
    assert c.may_connect
    c.connections = 1
    assert not c.may_connect
    assert all(Circuit().admit() for _ in range(10_000))


def detector(count: int, **settings: object) -> tuple[Balancer, OutlierDetector]:
    b = balancer(count, Balance.ROUND_ROBIN)
    return b, OutlierDetector(b, OutlierDetection(**settings), 0.0)  # type: ignore[arg-type]


def test_consecutive_failures_eject_and_time_lets_back_in() -> None:
    """The fifth in a row; back after the base time, at the next sweep."""
    b, d = detector(3)
    bad = b.members[0]

    assert [d.observe(bad, s, 1.0) for s in (500, 500, 200, 500, 500, 500, 500)] == [False] * 7
    assert d.observe(bad, 500, 1.0)
    assert set(names([b.pick(REQUEST, lambda: 0.0) for _ in range(6)])) == {"1", "2"}
    d.sweep(20.0)
    assert bad.ejected
    d.sweep(31.0)
    assert not bad.ejected
    assert "0" in names([b.pick(REQUEST, lambda: 0.0) for _ in range(3)])


def test_each_ejection_is_longer_and_quiet_intervals_forgive() -> None:
    """Envoy's multiplier."""
    b, d = detector(2, consecutive_5xx=1, interval_s=1.0, base_ejection_s=10.0)
    bad = b.members[0]
    assert d.observe(bad, 500, 0.0)
    d.sweep(10.0)
    assert not bad.ejected
    assert d.observe(bad, 500, 10.5)
    d.sweep(29.0)
    assert bad.ejected
    d.sweep(30.5)
    assert not bad.ejected
    for now in (31.5, 32.5, 33.5):
        d.sweep(now)
    assert d.observe(bad, 500, 34.0)
    d.sweep(44.5)
    assert not bad.ejected


def test_gateway_errors_count_apart() -> None:
    """502, 503, 504 and no answer at all; an own limit, off by default."""
    b, d = detector(2, consecutive_gateway_errors=2, consecutive_5xx=0)
    bad = b.members[0]

    assert [d.observe(bad, s, 0.0) for s in (503, 500, 504)] == [False] * 3
    assert d.observe(bad, None, 0.0)


def test_local_failures_count_apart_where_told_to() -> None:
    """Otherwise no response counts as 503."""
    b, d = detector(2, split_local_origin=True, consecutive_local_origin_failures=2, consecutive_5xx=1)
    bad = b.members[0]

    assert not d.observe(bad, None, 0.0)
    assert not d.observe(bad, 200, 0.0)
    assert not d.observe(bad, None, 0.0)
    assert d.observe(bad, None, 0.0)


@given(count=st.integers(1, 20), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]), seed=st.integers(0, 99))
def test_no_more_than_the_share_is_ejected_but_one(count: int, share: float, seed: int) -> None:
    """So that a bad release cannot take every endpoint out."""
    b, d = detector(count, consecutive_5xx=1, max_ejection_share=share)
    for number in random.Random(seed).sample(range(count), k=count):
        d.observe(b.members[number], 500, 0.0)

    assert sum(h.ejected for h in b.members) == max(1, int(share * count))


def test_in_a_panic_ejections_do_not_count() -> None:
    """Below `minHealthPercent` all are asked again."""
    view = mesh(2)
    b = Balancer(hosts(view.endpoints(view.services[0]), view.services[0], 80, None), panic_share=0.6)
    b.members[0].ejected = True
    b.ejection_changed()

    assert {b.pick(REQUEST, lambda d=d: d) for d in (0.0, 0.9)} == set(b.members)  # type: ignore[misc]
