"""What must be seen between every two kinds of workloads, with and without a waypoint between them."""

from __future__ import annotations

import dataclasses

import pytest

from planes import catalog
from planes.claims import ALPN, AMBIENT, NONE, SIDECAR, Wire, claims, wire
from planes.waypoint.place import waypoints
from testbed import planespec, topofile
from testbed.model.placement import Claim, Encryption

TWO_ZONES = topofile.load(topofile.find("two-zones"))
SERVICE = TWO_ZONES.service("server")
POD = f"{TWO_ZONES.workload('server').address}:8080"


@pytest.mark.parametrize(
    ("client", "server", "plain", "listening"),
    [
        (SIDECAR, SIDECAR, Wire.MTLS, Wire.MTLS),
        (SIDECAR, AMBIENT, Wire.HBONE, Wire.HBONE),
        (AMBIENT, SIDECAR, Wire.CLEAR, Wire.HBONE),
        (AMBIENT, AMBIENT, Wire.HBONE, Wire.HBONE),
        *[(kind, NONE, Wire.CLEAR, Wire.CLEAR) for kind in (SIDECAR, AMBIENT, NONE)],
        *[(NONE, kind, Wire.CLEAR, Wire.CLEAR) for kind in (SIDECAR, AMBIENT)],
    ],
)
def test_the_matrix_of_kinds(client: str, server: str, plain: Wire, listening: Wire) -> None:
    """facts/hbone 4.4: a sidecar prefers its own, a ztunnel has only HBONE, whoever cannot is spoken to in clear."""
    assert wire(client, server) is plain
    assert wire(client, server, listens_hbone=True) is listening


def of(client: str, server: str, *, through: bool = True, **more: bool) -> list[Claim]:
    placed = waypoints(TWO_ZONES) if through else ()
    found = claims(TWO_ZONES, {"client": client, "server": server}, waypoints=placed, **more)
    return [c for c in found if c.call[0] == "client" and c.call[-1] == "server" and c.service == "server"]


def test_a_call_through_a_waypoint_is_two_claims() -> None:
    """The service's address first, the pod's then; each end proves itself to the waypoint, none to the other."""
    first, second = of(AMBIENT, AMBIENT)

    assert (first.source, first.destination, first.authority) == ("client", "waypoint", f"{SERVICE.address}:8080")
    assert (second.source, second.destination, second.authority) == ("waypoint", "server", POD)
    names = [i.service_account for c in (first, second) for i in (c.client_identity, c.server_identity)]
    assert names == ["client", "waypoint", "waypoint", "server"]
    assert first.stops == second.stops == ("client", "waypoint", "server")


@pytest.mark.parametrize("client", [SIDECAR, NONE])
def test_sidecars_and_strangers_go_around_the_waypoint(client: str) -> None:
    """facts/hbone 3.7."""
    (claim,) = of(client, AMBIENT)

    assert claim.call == ("client", "server")
    assert claim.hbone == (client == SIDECAR)
    assert claim.authority == (POD if client == SIDECAR else None)


def test_a_waypoint_speaks_plainly_to_a_sidecar_unless_it_takes_tunnels() -> None:
    """A waypoint has HBONE only, too."""
    assert [c.encryption for c in of(AMBIENT, SIDECAR)] == [Encryption.MTLS, Encryption.CLEAR]
    assert [c.hbone for c in of(AMBIENT, SIDECAR, listens_hbone=True)] == [True, True]


def test_between_sidecars_the_hello_says_istio_and_the_service() -> None:
    """By the port's protocol (facts/hbone 4.2)."""
    (claim,) = of(SIDECAR, SIDECAR)

    assert (claim.alpn, claim.sni) == (ALPN["http"], "outbound_.8080_._.server.default.svc.cluster.local")
    assert claim.alpn_http2 == ("istio-h2", "istio", "h2")
    assert (claim.hbone, claim.authority) == (False, None)
    tcp = next(c for c in claims(TWO_ZONES, {"client": SIDECAR, "tcp": SIDECAR}) if c.destination == "tcp" and c.sni)
    assert (tcp.alpn, tcp.alpn_http2) == (("istio",), ())


def test_every_replica_of_a_waypoint_is_a_way_of_its_own() -> None:
    """Which one a request takes is known from the packets only."""
    services = tuple(
        dataclasses.replace(s, waypoint=dataclasses.replace(s.waypoint, replicas=2)) if s.waypoint else s
        for s in TWO_ZONES.services
    )
    topology = dataclasses.replace(TWO_ZONES, services=services)
    found = [c for c in catalog.ambient.place(topology, {}).claims if c.call[0] == "client" and c.service == "server"]

    assert {c.stops for c in found} == {("client", "waypoint", "server"), ("client", "waypoint-2", "server")}


@pytest.mark.parametrize("plane", ["none", "sidecar", "ambient-l4", "ambient", "hybrid", "hybrid:listens_hbone=yes"])
def test_a_plane_claims_something_of_every_call(plane: str) -> None:
    """A call without a claim would go unjudged."""
    placement = planespec.place(plane, TWO_ZONES)
    calls = {(c, s.name) for c in ("client", "intruder") for s in TWO_ZONES.services}

    assert {(c.call[0], c.service) for c in placement.claims} == calls
    assert len(set(placement.claims)) == len(placement.claims)
