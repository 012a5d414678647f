"""Which proxies a call must cross, and what their counters prove."""

from __future__ import annotations

import dataclasses

import pytest

from testbed import paths, planespec, topofile
from testbed.fidelity import Gates, Level, Readings, judge
from testbed.model.experiment import Load
from testbed.paths import Counted

ZONES = topofile.load(topofile.find("two-zones"))
LOAD = Load(response_bytes=256)
METRICS = """# TYPE istio_requests_total counter
istio_requests_total{reporter="source",response_code="200"} 40
istio_requests_total{reporter="source",response_code="503"} 2
istio_tcp_sent_bytes_total{reporter="source"} 1000
istio_tcp_sent_bytes_total{reporter="destination"} 1e3
istio_tcp_received_bytes_total{reporter="source"} 7
"""
ENVOY = """http.admin.downstream_rq_completed: 9
http.inbound.downstream_rq_completed: 40
http.outbound.downstream_rq_completed: 2
tcp.out.downstream_cx_tx_bytes_total: 512
"""


@pytest.mark.parametrize(
    ("plane", "target", "crossed"),
    [
        ("none", "server", {}),
        ("sidecar", "server", {"sidecar.client": 1, "sidecar.server": 1}),
        ("ambient-l4", "server", {"ztunnel.node-a": 1, "ztunnel.node-b": 1}),
        ("ambient", "server", {"waypoint.waypoint": 1, "ztunnel.node-a": 1, "ztunnel.node-b": 1}),
        ("ambient", "ledger", {"ztunnel.node-a": 1, "ztunnel.node-b": 1}),
        ("hybrid", "server", {"sidecar.client": 1, "ztunnel.node-b": 1}),
        ("node-l7", "server", {"node-l7.node-a": 1, "node-l7.node-b": 1}),
    ],
)
def test_the_way_is_what_the_plane_claims(plane: str, target: str, crossed: dict[str, int]) -> None:
    """A sidecar goes around the waypoint of whom it calls; a service without one has none on its way."""
    assert paths.expected(planespec.place(plane, ZONES), ZONES, "client", target) == crossed


def test_a_ztunnel_with_both_ends_is_crossed_twice() -> None:
    """Client and server on one node: its bytes are counted at either end."""
    moved = [dataclasses.replace(w, node="node-a") if w.name == "server" else w for w in ZONES.workloads]
    topology = dataclasses.replace(ZONES, workloads=tuple(moved))

    assert paths.expected(planespec.place("ambient-l4", topology), topology, "client", "server")["ztunnel.node-a"] == 2


def test_of_several_endpoints_no_call_must_cross_the_proxies_of_all() -> None:
    """They may be crossed; the client's own must be."""
    services = [
        dataclasses.replace(s, endpoints=("server", "ledger")) if s.name == "server" else s for s in ZONES.services
    ]
    topology = dataclasses.replace(ZONES, services=tuple(services))
    found = paths.expected(planespec.place("sidecar", topology), topology, "client", "server")

    assert found == {"sidecar.client": 1, "sidecar.ledger": 0, "sidecar.server": 0}


def test_metrics_are_added_up() -> None:
    """Requests of all outcomes, answers of both ends; an Envoy's admin counts itself and is left out."""
    assert paths.parse(METRICS) == Counted(requests=42, answer_bytes=2000)
    assert paths.parse_envoy(ENVOY) == Counted(requests=42, answer_bytes=512, envoy=True)


def proof(plane: str, after: dict[str, Counted], *, seen: int | None = 100, load: Load = LOAD, alone: bool = True):  # type: ignore[no-untyped-def]
    placement = planespec.place(plane, ZONES)
    before = {proxy.name: Counted(requests=5, answer_bytes=50) for proxy in placement.proxies}
    wanted = paths.expected(placement, ZONES, "client", "server")
    found = paths.readings(wanted, before, before | after, placement, load=load, seen=seen, alone=alone)
    return judge(Readings(paths=found), Gates())


BYTES = Counted(requests=5, answer_bytes=50 + 100 * 300)
WHOLE = {
    "ztunnel.node-a": BYTES, "ztunnel.node-b": BYTES, "waypoint.waypoint": Counted(requests=105, answer_bytes=50)
}  # fmt: skip


def test_counts_that_fit_prove_the_way() -> None:
    """A waypoint its requests, ztunnels at least the bytes of all answers."""
    found = proof("ambient", WHOLE)

    assert found.level is Level.PASS
    assert {c.component for c in found.checks if c.level is not None} == set(WHOLE)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"waypoint.waypoint": Counted(requests=5, answer_bytes=50)}, "waypoint.waypoint counted 0 requests of 100"),
        ({"ztunnel.node-b": Counted(requests=5, answer_bytes=50)}, "ztunnel.node-b counted 0 bytes of answers of"),
        ({"ztunnel.node-a": Counted(requests=5, answer_bytes=20000)}, "ztunnel.node-a counted 19950 bytes"),
    ],
)
def test_requests_that_go_past_a_proxy_fail_it(changed: dict[str, Counted], told: str) -> None:
    """All of them, or some."""
    found = proof("ambient", WHOLE | changed)

    assert found.level is Level.FAIL and told in found.text


def test_requests_that_cross_a_stranger_fail_it() -> None:
    """A sidecar of somebody who was not called."""
    on_way = dict.fromkeys(("sidecar.client", "sidecar.server"), Counted(requests=105, answer_bytes=50))
    stray = {"sidecar.vault": Counted(requests=25, answer_bytes=50)}

    assert proof("sidecar", on_way).level is Level.PASS
    assert "sidecar.vault counted 20 requests that should not cross it" in proof("sidecar", on_way | stray).text
    assert proof("sidecar", on_way | stray, alone=False).level is Level.PASS  # the target calls others in turn


def test_tcp_is_counted_by_bytes_everywhere() -> None:
    """Whoever reads requests finds none in it."""
    crossed = dict.fromkeys(("sidecar.client", "sidecar.server"), Counted(requests=5, answer_bytes=30000))

    assert proof("sidecar", crossed, load=dataclasses.replace(LOAD, protocol="tcp")).level is Level.PASS


@pytest.mark.parametrize(
    ("after", "seen", "why"),
    [({}, None, "applications do not count"), ({"waypoint.waypoint": Counted(requests=3)}, 100, "began anew")],
)
def test_what_cannot_be_proved_is_said(after: dict[str, Counted], seen: int | None, why: str) -> None:
    """A proxy that was begun anew has lost its counts: that is no bypass."""
    found = proof("ambient", WHOLE | after, seen=seen)

    assert found.level is Level.PASS
    assert any(c.level is None and why in c.cause for c in found.checks)
