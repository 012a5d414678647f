"""What every segment between two workloads must show, by the kind of both ends and the waypoint between them. Pure.

One function for all planes: a plane is a map of workload to kind. A call through a waypoint is two claims, one a leg,
and so are the identities: the client proves itself to the waypoint, the waypoint to the server. Source: facts/hbone
4.2 (ALPN, SNI), 4.4 (sidecar and ambient), 3.2 to 3.7 (waypoints: who passes them, and as whom).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Protocol

from testbed.model.identity import Identity
from testbed.model.placement import Claim, Encryption
from testbed.model.topology import Service, ServicePort, Topology, Workload
from testbed.model.traffic import DestinationRule, VirtualService

SIDECAR, AMBIENT, NONE = "sidecar", "ambient", "none"
"""Kinds of workloads."""


class Wire(StrEnum):
    """What the bytes between two ends are wrapped in."""

    CLEAR = "clear"
    MTLS = "mtls"
    """Istio's own, between sidecars: to the application's port."""
    HBONE = "hbone"


ALPN = {"http": ("istio-http/1.1", "istio", "http/1.1"), "tcp": ("istio",)}
"""What a sidecar offers by the port's protocol, requests by HTTP/1.1; others depend on the request."""
ALPN_HTTP2 = {"http": ("istio-h2", "istio", "h2")}
"""The same for requests by HTTP/2."""


class PlacedWaypoint(Protocol):
    """As `planes.waypoint.place.Waypoint`."""

    @property
    def pods(self) -> Sequence[tuple[str, str]]: ...
    @property
    def services(self) -> Sequence[Service]: ...
    def identity(self, trust_domain: str) -> Identity: ...


def wire(client: str, server: str, *, listens_hbone: bool = False) -> Wire:
    """Sidecars prefer their own mutual TLS among themselves; a ztunnel cannot speak it."""
    if NONE in (client, server):
        return Wire.CLEAR
    if server == AMBIENT:
        return Wire.HBONE
    if client == SIDECAR:
        return Wire.MTLS
    return Wire.HBONE if listens_hbone else Wire.CLEAR


def claims(
    topology: Topology,
    kinds: Mapping[str, str],
    *,
    waypoints: Sequence[PlacedWaypoint] = (),
    listens_hbone: bool = False,
) -> tuple[Claim, ...]:
    """For every call that somebody may make. `kinds` is by workload; who is not in it is outside every mesh.

    `listens_hbone`: sidecars take tunnels, too.
    """
    through = {service.name: waypoint for waypoint in waypoints for service in waypoint.services}
    found: dict[Claim, None] = {}
    for client, service, port, server in calls(topology):
        kind = kinds.get(client.name, NONE)
        how = wire(kind, kinds.get(server.name, NONE), listens_hbone=listens_hbone)
        waypoint = through.get(service.name)
        if waypoint is not None and kind == AMBIENT:  # sidecars and strangers go around it (3.7)
            # A waypoint speaks HBONE as a ztunnel does, and plain bytes to whoever takes no tunnel.
            onward = wire(AMBIENT, kinds.get(server.name, NONE), listens_hbone=listens_hbone)
            legs = _through(topology, client, server, service, port, waypoint, onward)
        else:
            ends = client.identity(topology.trust_domain), server.identity(topology.trust_domain)
            legs = [_leg(topology, (client.name, server.name), how, *ends, service, port, server)]
        for claim in legs:
            found[claim] = None
    return tuple(found)


def _through(
    topology: Topology, client: Workload, server: Workload, service: Service, port: ServicePort,
    waypoint: PlacedWaypoint, onward: Wire,
) -> Iterator[Claim]:  # fmt: skip
    """Over each replica. Towards the waypoint the service is asked for, by its own address: it is not chosen yet."""
    here, there = client.identity(topology.trust_domain), server.identity(topology.trust_domain)
    between = waypoint.identity(topology.trust_domain)
    for pod, _ in waypoint.pods:
        stops = (client.name, pod, server.name)
        first = _leg(topology, stops[:2], Wire.HBONE, here, between, service, port, server)
        second = _leg(topology, stops[1:], onward, between, there, service, port, server)
        yield replace(first, authority=f"{service.address}:{port.port}", stops=stops)
        yield replace(second, stops=stops)


def _leg(
    topology: Topology, ends: tuple[str, ...], how: Wire, client: Identity, server: Identity,
    service: Service, port: ServicePort, endpoint: Workload,
) -> Claim:  # fmt: skip
    source, destination = ends
    claim = Claim(
        source=source, destination=destination, segment="wire", encryption=Encryption.CLEAR,
        service=service.name, port=port.port,
    )  # fmt: skip
    if how is Wire.CLEAR:
        return claim
    claim = replace(claim, encryption=Encryption.MTLS, client_identity=client, server_identity=server)
    if how is Wire.HBONE:
        return replace(claim, hbone=True, authority=f"{endpoint.address}:{port.target_port}")
    sni = None if _routed(topology, service) else f"outbound_.{port.port}_._.{service.hostname}"
    return replace(
        claim, alpn=ALPN.get(port.protocol, ()), alpn_http2=ALPN_HTTP2.get(port.protocol, ()), sni=sni
    )


def _routed(topology: Topology, service: Service) -> bool:
    """Whether resources may send its calls to a subset or elsewhere, which the name in the ClientHello then says."""
    return any(isinstance(r, DestinationRule) and r.subsets for r in topology.policies) or any(
        isinstance(r, VirtualService) and {service.name, service.hostname} & set(r.hosts) for r in topology.policies
    )


def calls(topology: Topology) -> Iterator[tuple[Workload, Service, ServicePort, Workload]]:
    """Clients are idle workloads, which may call every service, and applications, which call those they name."""
    by_name = {w.name: w for w in topology.workloads}
    for client in topology.workloads:
        for service in topology.services:
            if client.app.kind != "idle" and service.name not in client.app.calls:
                continue
            for endpoint in service.endpoints:
                if endpoint != client.name:
                    yield from ((client, service, port, by_name[endpoint]) for port in service.ports)


def of_kind(kind: str, names: Collection[str]) -> dict[str, str]:
    """Kinds for a plane that has only one."""
    return dict.fromkeys(names, kind)
