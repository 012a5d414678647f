"""Where next: outbound, the hop for a captured connection; inbound, what an HBONE authority means at a workload. Pure.

The order of questions is ztunnel's own (facts/hbone 2.1 to 2.5, 1.4, 1.5) and so are the corners: a service's waypoint
is for traffic addressed to the service, a workload's for traffic addressed to its address, and a waypoint that is named
but not known refuses rather than goes round it. Chance comes in as `draw` in [0, 1), and so do the addresses of host
names: a hop that needs one that was not given says which (`Hop.unresolved`). What would cross networks is refused:
double HBONE is not yet here.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from types import MappingProxyType

from planes.mesh.names import pick
from planes.mesh.view import (
    HBONE_PORT,
    Endpoint,
    Families,
    GatewayAddress,
    MeshView,
    Mode,
    Protocol,
    RoutingScope,
    ServiceView,
    WorkloadView,
)
from testbed.model.identity import Identity

ILLEGAL_PORTS = frozenset({15008, 15006, 15001})
"""The proxy's own: to relay to one would be to call oneself for ever."""


class HopKind(StrEnum):
    TCP = "tcp"
    HBONE = "hbone"
    REFUSE = "refuse"


class Flag(StrEnum):
    """Response flags of metrics and logs, as ztunnel writes them."""

    NONE = "-"
    DENY = "DENY"
    CONNECT = "CONNECT"
    TLS_FAILURE = "TLS_FAILURE"
    H2_HANDSHAKE_FAILURE = "H2_HANDSHAKE_FAILURE"
    NETWORK_POLICY = "NETWORK_POLICY"
    IDENTITY_ERROR = "IDENTITY_ERROR"
    CERT_REVOKED = "CERT_REVOKED"


@dataclass(frozen=True, slots=True)
class Hop:
    """One decision of where next, how, as whom, expecting whom."""

    kind: HopKind
    dial: tuple[str, int] | None = None
    """Address to open TCP to; None when refused."""
    authority: str | None = None
    """`:authority` of the CONNECT; None unless HBONE."""
    expected: tuple[str, ...] = ()
    """SPIFFE URIs of which the server must prove one, exactly."""
    source_identity: Identity | None = None
    """As whom to connect; None unless HBONE."""
    destination: WorkloadView | None = None
    """The workload dialled (a waypoint, if it goes through one); None when the address is not of the mesh."""
    service: ServiceView | None = None
    """The service that was asked for, never a waypoint's own."""
    reason: str = ""
    """Why it is refused, and the mend."""
    flag: Flag = Flag.NONE
    unresolved: str = ""
    """The host name for want of whose addresses it is refused: ask again with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """What becomes of a CONNECT before policy and the upstream connect: `status` 200 means go on to those."""

    status: int
    port: int = 0
    """To dial, always at the workload's own address."""
    reason: str = ""
    service: ServiceView | None = None
    proxy_target: tuple[str, int] | None = None
    """Destination to write in a PROXY v2 header; None when the workload wants none."""


class Refused(Exception):
    """No hop: the text says why. Stays inside this module."""

    unresolved = ""


Names = Mapping[str, tuple[str, ...]]
"""Addresses by host name."""
NO_NAMES: Names = MappingProxyType({})


def next_hop(
    view: MeshView,
    source: WorkloadView,
    destination: tuple[str, int],
    draw: float,
    own_ports: frozenset[int] = ILLEGAL_PORTS,
    names: Names = NO_NAMES,
) -> Hop:
    """The hop for a connection that `source` opened to `destination` (as SO_ORIGINAL_DST gives it)."""
    ip, port = destination
    if port in own_ports and (ip == "::1" or ip.startswith("127.")):
        reason = f"{ip}:{port} is a port of the proxy itself; call the workload's own port"
        return Hop(HopKind.REFUSE, reason=reason, flag=Flag.CONNECT)
    try:
        return _hop(view, source, destination, draw, names)
    except Refused as refusal:
        return Hop(HopKind.REFUSE, reason=str(refusal), flag=Flag.CONNECT, unresolved=refusal.unresolved)


def _hop(view: MeshView, source: WorkloadView, destination: tuple[str, int], draw: float, names: Names) -> Hop:
    ip, port = destination
    workload = view.workload_at(source.network, ip)
    service = None if workload is not None else view.service_at(source.network, ip, source.namespace)
    if service is not None:
        return _to_service(view, source, service, ip, port, draw, names)
    if workload is None:
        return Hop(HopKind.TCP, (ip, port))
    if workload.waypoint is not None and not _is_its_own_waypoint(view, source, workload.waypoint):
        return _through(view, source, workload.waypoint, ip, port, draw, None, names)
    return _direct(view, source, workload, ip, port, None)


def _to_service(
    view: MeshView, source: WorkloadView, service: ServiceView, ip: str, port: int, draw: float, names: Names
) -> Hop:
    waypoint, draw = _service_waypoint(service, draw)
    if waypoint is not None:
        return _through(view, source, waypoint, ip, port, draw, service, names)
    if service.load_balancer.mode is Mode.PASSTHROUGH:
        return Hop(HopKind.TCP, (ip, port), service=service)
    endpoint = _balance(view, source, service, port, draw, to_waypoint=False)
    workload, target_port = endpoint.workload, _target_port(service, endpoint, port)
    if workload.network != source.network:
        raise Refused(f"{workload.uid} is on network {workload.network!r}; HBONE across networks is not yet here")
    return _direct(view, source, workload, _pick_address(workload, ip, service, names, draw), target_port, service)


def _direct(
    view: MeshView, source: WorkloadView, workload: WorkloadView, ip: str, port: int, service: ServiceView | None
) -> Hop:
    if workload.protocol is Protocol.TCP:
        return Hop(HopKind.TCP, (ip, port), destination=workload, service=service)
    return Hop(
        HopKind.HBONE, (ip, HBONE_PORT), join(ip, port), _expected(view, workload, service), source.identity, workload,
        service,
    )  # fmt: skip


def _through(
    view: MeshView, source: WorkloadView, gateway: GatewayAddress, ip: str, port: int, draw: float,
    service: ServiceView | None, names: Names,
) -> Hop:  # fmt: skip
    """To a waypoint, which is told the original address, not a resolved one."""
    found, near = view.destination(gateway), gateway.address[1] if gateway.address else ip
    waypoint_service = None
    if isinstance(found, ServiceView):
        waypoint_service = found
        if found.load_balancer.mode is Mode.PASSTHROUGH:
            raise Refused(f"waypoint {gateway} is a passthrough service; name one with endpoints")
        endpoint = _balance(view, source, found, gateway.hbone_port, draw, to_waypoint=True)
        workload, dial_port = endpoint.workload, _target_port(found, endpoint, gateway.hbone_port)
    elif found is not None:
        workload, dial_port = found, gateway.hbone_port
    else:
        raise Refused(f"waypoint {gateway} is not known to this proxy; traffic does not go round a waypoint")
    if workload.network != source.network:
        raise Refused(
            f"waypoint {workload.uid} is on network {workload.network!r}; HBONE across networks is not yet here"
        )
    dial = (_pick_address(workload, near, waypoint_service, names, draw), dial_port)
    expected = _expected(view, workload, waypoint_service)
    return Hop(HopKind.HBONE, dial, join(ip, port), expected, source.identity, workload, service)


def _service_waypoint(service: ServiceView, draw: float) -> tuple[GatewayAddress | None, float]:
    """One of the weighted waypoints, else the only one; with the part of `draw` that is still unused."""
    total = sum(weight for _, weight in service.weighted_waypoints)
    if not total:
        return service.waypoint, draw
    mark = draw * total
    for gateway, weight in service.weighted_waypoints:
        if mark < weight:
            return gateway, mark / weight
        mark -= weight
    return service.weighted_waypoints[-1][0], 0.0  # only by rounding of a draw next to 1


def _is_its_own_waypoint(view: MeshView, source: WorkloadView, gateway: GatewayAddress) -> bool:
    """Whether `source` is what `gateway` names: a waypoint behind a ztunnel must not be sent back to itself."""
    found = view.destination(gateway)
    members = [e.workload for e in view.endpoints(found)] if isinstance(found, ServiceView) else [found]
    return any(m is not None and m.uid == source.uid for m in members)


def _target_port(service: ServiceView, endpoint: Endpoint, port: int) -> int:
    target = endpoint.ports.get(port) or service.ports.get(port, 0)
    if target:
        return target
    tunnel = endpoint.workload.application_tunnel
    if tunnel is not None and tunnel.port is not None:  # it takes everything on one port, so any service port will do
        return port
    raise Refused(f"service {service.hostname} has no target for port {port} at {endpoint.workload.uid}")


def _balance(
    view: MeshView, source: WorkloadView, service: ServiceView, port: int, draw: float, *, to_waypoint: bool
) -> Endpoint:
    """Random, weighted by capacity, among the endpoints of the best rank."""
    balancer = service.load_balancer
    ranked = balancer.mode is not Mode.STANDARD
    key = (service.key, port, to_waypoint, source.network, source.uid if ranked else None)
    options = view.memo.get(key)
    if options is None:
        if port not in service.ports and not to_waypoint:
            raise Refused(f"service {service.hostname} has no port {port}; it has {sorted(service.ports)}")
        chosen = [e for e in view.endpoints(service) if _can_serve(e, source, service, port, to_waypoint)]
        if ranked:
            chosen = _best_rank(chosen, source, balancer.mode, balancer.preferences)
        chosen = [e for e in chosen if e.workload.capacity]
        view.memo[key] = options = (chosen, list(accumulate(e.workload.capacity for e in chosen)))
    chosen, marks = options  # type: ignore[misc]
    if not chosen:
        raise Refused(f"no healthy upstream: service {service.hostname} has no endpoint that may take port {port}")
    return chosen[bisect_right(marks, draw * marks[-1])] if len(chosen) > 1 else chosen[0]


def _can_serve(endpoint: Endpoint, source: WorkloadView, service: ServiceView, port: int, to_waypoint: bool) -> bool:
    workload = endpoint.workload
    if not (workload.addresses or workload.hostname) and (
        workload.network == source.network or workload.network_gateway is None
    ):
        return False
    if to_waypoint:
        return port in service.ports or workload.application_tunnel is not None
    return bool(service.ports.get(port)) or port in endpoint.ports


def _best_rank(
    endpoints: list[Endpoint], source: WorkloadView, mode: Mode, preferences: tuple[RoutingScope, ...]
) -> list[Endpoint]:
    ranks = [locality_rank(source, e.workload, preferences) for e in endpoints]
    if mode is Mode.STRICT:
        return [e for e in endpoints if all(_same(scope, source, e.workload) for scope in preferences)]
    best = max(ranks, default=0)
    return [e for e, rank in zip(endpoints, ranks, strict=True) if rank == best]


def locality_rank(source: WorkloadView, workload: WorkloadView, preferences: tuple[RoutingScope, ...]) -> int:
    """Leading preferences that match; the first mismatch ends the count, a leading Network mismatch only lowers it."""
    rank = lift = 0
    for scope in preferences:
        same = _same(scope, source, workload)
        if scope is RoutingScope.NETWORK and preferences[0] is RoutingScope.NETWORK:
            if not same:
                continue
            lift = len(preferences) - 1
        if not same:
            break
        rank += 1
    return rank + lift


def _same(scope: RoutingScope, a: WorkloadView, b: WorkloadView) -> bool:
    attribute = "cluster_id" if scope is RoutingScope.CLUSTER else scope.lower()
    return getattr(a, attribute) == getattr(b, attribute)


def _pick_address(
    workload: WorkloadView, near: str, service: ServiceView | None, names: Names, draw: float
) -> str:
    """The workload's address of the family the service wants, else of the family that was asked for, else any.

    Of a name's addresses any of the family that was asked for, as ztunnel: the service is not asked there.
    """
    addresses = workload.addresses
    if len(addresses) == 1:
        return addresses[0]
    if not addresses:
        return _named_address(workload, ":" in near, names, draw)
    families = service.families if service is not None else None
    v6 = families is Families.IPV6 or (families is not Families.IPV4 and ":" in near)
    return next((a for a in addresses if (":" in a) is v6), addresses[0])


def _named_address(workload: WorkloadView, v6: bool, names: Names, draw: float) -> str:
    name = workload.hostname
    if not name:
        raise Refused(f"{workload.uid} has neither an address nor a host name")
    if name not in names:
        refusal = Refused(f"{workload.uid} is known by name only, and {name} was not resolved")
        refusal.unresolved = name
        raise refusal
    if not names[name]:
        raise Refused(f"{workload.uid} is known by name only, and {name} has no address")
    # The balance has used the draw's first digits; those behind them are as random.
    return pick(names[name], v6=v6, draw=draw * 65537 % 1)


def _expected(view: MeshView, workload: WorkloadView, service: ServiceView | None) -> tuple[str, ...]:
    """The workload's identity and the service's SANs."""
    key = (workload.uid, service.key if service is not None else None)
    held = view.memo.get(key)
    if held is None:
        sans = service.sans if service is not None else ()
        view.memo[key] = held = tuple(sorted({str(workload.identity), *map(str, sans)}))
    return held  # type: ignore[return-value]


def join(host: str, port: int) -> str:
    """`host:port`, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_authority(text: str | None) -> tuple[str, int, bool]:
    """(host, port, is it an address). Raises ValueError; a port is obligatory."""
    host, colon, port = (text or "").rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65536:
        raise ValueError(f"authority {text!r} is not host:port")
    bracketed = host.startswith("[") and host.endswith("]")
    if ":" in host and not bracketed:
        raise ValueError(f"authority {text!r} has an IPv6 address without brackets")
    try:
        return str(ipaddress.ip_address(host[1:-1] if bracketed else host)), int(port), True
    except ValueError:
        if bracketed or not all(c.isascii() and (c.isalnum() or c in "-._*") for c in host):
            raise ValueError(f"authority {text!r} is neither an address nor a host name") from None
        return host.lower(), int(port), False


def inbound_target(
    view: MeshView,
    workload: WorkloadView | None,
    authority: str | None,
    dialled_ip: str,
    forwarded_host: str | None = None,
    own_ports: frozenset[int] = ILLEGAL_PORTS,
) -> Inbound:
    """What `authority` means at `workload`, whose 15008 was dialled at `dialled_ip`; the method is known to be CONNECT.

    `forwarded_host` is the peer's unproven hint; it only helps to name the service in logs.
    """
    try:
        host, port, is_address = parse_authority(authority)
    except ValueError as e:
        return Inbound(status=400, reason=str(e))
    if workload is None:
        return Inbound(status=503, reason=f"no workload is known at {dialled_ip}")
    if is_address:
        if not _accepts(view, workload, host, dialled_ip):
            return Inbound(status=400, reason=f"ip mismatch: {dialled_ip} != {host}")
        service, real_port = _guess_service(view, workload, port, forwarded_host), port
    else:
        service = view.service_named(host, workload.namespace)
        if service is None:
            return Inbound(status=503, reason=f"no service is known by the name {host}")
        real_port = _port_at(view, service, workload, port)
        if not real_port:
            return Inbound(status=503, reason=f"service {host} has no port {port} at {workload.uid}", service=service)
    if real_port in own_ports:
        return Inbound(status=503, reason=f"port {real_port} is the proxy's own", service=service)
    return _tunnelled(workload, service, host, port, real_port, is_address)


def _tunnelled(
    workload: WorkloadView, service: ServiceView | None, host: str, port: int, real_port: int, is_address: bool
) -> Inbound:
    tunnel = workload.application_tunnel
    if tunnel is None:
        return Inbound(status=200, port=real_port, service=service)
    target: tuple[str, int] | None = (host, port)
    if not is_address:  # PROXY takes no names: a VIP of the service stands for it, own network and IPv4 first
        vips = sorted(service.vips if service else (), key=lambda v: (v[0] != workload.network, ":" in v[1]))
        if not vips:
            return Inbound(
                status=503, reason=f"service {host} has no address to write in a PROXY header", service=service
            )
        target = (vips[0][1], port)
    return Inbound(
        status=200,
        port=tunnel.port or real_port,
        service=service,
        proxy_target=target if tunnel.proxy_protocol else None,
    )


def _accepts(view: MeshView, workload: WorkloadView, host: str, dialled_ip: str) -> bool:
    """Its own address; anything, if it has a tunnel of its own; or what names it as its waypoint (sandwich)."""
    if host == dialled_ip or workload.application_tunnel is not None:
        return True
    target = view.workload_at(workload.network, host) or view.service_at(workload.network, host, "")
    gateway = target.waypoint if target is not None else None
    waypoint = view.destination(gateway) if gateway is not None else None
    if isinstance(waypoint, ServiceView):
        return any(e.workload.uid == workload.uid for e in view.endpoints(waypoint))
    return waypoint is not None and dialled_ip in waypoint.addresses


def _port_at(view: MeshView, service: ServiceView, workload: WorkloadView, port: int) -> int:
    """The endpoint's own map first (named ports differ by endpoint), then the service's; 0 when neither knows it."""
    for endpoint in view.endpoints(service):
        if endpoint.workload.uid == workload.uid and port in endpoint.ports:
            return endpoint.ports[port]
    return service.ports.get(port, 0)


def _guess_service(view: MeshView, workload: WorkloadView, port: int, forwarded_host: str | None) -> ServiceView | None:
    """Of the workload's services: the one the peer named, else the first whose target is `port`. For logs only."""
    services = view.services_of(workload)
    named = next((s for s in services if s.hostname == forwarded_host), None)
    if named is not None or not services:
        return named
    return next((s for s in services if any(_port_at(view, s, workload, p) == port for p in s.ports)), None)
