"""Envoy as a waypoint: CONNECT for a service's or a workload's address in, L7 once, CONNECT to an endpoint out. Pure.

Istio's shape (facts/hbone 3.3): `connect_terminate` ends the tunnel and says by filter state whose it is and where it
led; `main_internal` has a chain per service port; `connect_originate` opens the tunnel onward. Where Istio answers 200
for any authority and then closes, a CONNECT for what is not served here is answered 404, as by our own.

A workload's own address (Istio's `direct-http` and `direct-tcp` chains) has an internal listener of its own: there
every port is looked into, while a service's port that says what it speaks is not.
"""

from __future__ import annotations

from collections.abc import Sequence

from planes.envoy import http, pieces
from planes.envoy.authorization import Authorization, by_filter_state
from planes.envoy.parts import Parts, Subject
from planes.envoy.pieces import Json
from planes.envoy.routes import Routes, any_request, fault_filter, virtual_host
from planes.envoy.tunnels import Tunnels, inwards, remember_destination, remember_peer, server_tls
from planes.envoy.upstreams import Upstreams
from planes.l7.view import L7Port, L7Service
from planes.mesh import baggage
from planes.mesh.route import ILLEGAL_PORTS, join
from planes.mesh.view import HBONE_PORT, ServiceView, WorkloadView

_MAIN = "main_internal"
_DIRECT = "direct_internal"


def build(subject: Subject, parts: Parts) -> None:
    view, local = subject.configured, subject.local
    tunnels = Tunnels(identity=subject.identity, baggage=baggage.render(local), keylog=subject.keylog)
    upstreams = Upstreams(parts=parts, tunnels=tunnels)
    routes = Routes(view, parts, lambda cluster: upstreams.of(subject, cluster))
    served = [(view.services[key], port) for key in view.config.serves for port in view.services[key].ports]
    terminator = pieces.connect_terminator(
        "connect_terminate",
        domains=[join(service.address, port.port) for service, port in served],
        cluster_name=inwards(parts, _MAIN) if served else "",
        filters=[remember_peer()],
        others=[*_by_name(parts, served), *_own_addresses(subject, parts, upstreams)],
    )
    parts.listeners.append(
        pieces.listener(
            "connect_terminate", "0.0.0.0", HBONE_PORT,
            [pieces.chain([terminator], transport=server_tls(subject.identity, local.trust_domain, subject.keylog))],
        )
    )  # fmt: skip
    if not served:
        return
    chains = [made for service, port in served for made in _chains(subject, parts, upstreams, routes, service, port)]
    known = sorted({port.port for _, port in served if port.protocol})
    filters = [pieces.listener_filter("original_dst", "OriginalDst")]
    if any(not port.protocol for _, port in served):
        filters.append(pieces.inspector("http", not_at=known))
    parts.listeners.append(pieces.internal_listener(_MAIN, chains, filters=filters))


def _by_name(parts: Parts, served: Sequence[tuple[L7Service, L7Port]]) -> list[Json]:
    """An authority may be a service's name (facts/hbone 3.3, point 3): it stands for its address."""
    return [
        pieces.connect_host(name, [name], inwards(parts, _MAIN, at=join(service.address, port.port)))
        for service, port in served
        for name in [f"{service.hostname}:{port.port}"]
    ]


def _own_addresses(subject: Subject, parts: Parts, upstreams: Upstreams) -> list[Json]:
    """What a CONNECT for a workload that names this waypoint leads to, at any port but the proxies' own.

    Policies of the waypoint as a whole, no routes; what no HTTP is found in passes as TCP.
    """
    view = subject.configured
    config = view.config
    authorization = Authorization(
        policies=view.policy_resources(), trust_domain=config.trust_domain, name=by_filter_state
    )
    hosts: list[Json] = []
    chains: list[Json] = []
    for workload in subject.mesh.workloads:
        if workload.uid == subject.local.uid or workload.waypoint is None or not _names(subject, workload):
            continue
        authorization.tell_undone(parts)
        cluster = upstreams.own_address(workload)
        manager = http.manager(
            "direct-http", [virtual_host("direct-http", ["*"], [any_request(cluster)])],
            filters=authorization.http_filters(), paths=config.path_normalization,
        )  # fmt: skip
        proxied = [*authorization.network_filters("direct-tcp"), pieces.tcp_proxy(cluster)]
        for host in workload.addresses:
            refused = [join(host, port) for port in sorted(ILLEGAL_PORTS)]
            hosts.append(pieces.connect_host(f"own|{host}", [join(host, 0)[:-1] + "*"], inwards(parts, _DIRECT)))
            hosts.append(pieces.connect_host(f"own|{host}|refused", refused, None))
            found = pieces.to_address(host, application_protocols=[*http.HTTP1_PROTOCOLS, *http.HTTP2_PROTOCOLS])
            chains.append(pieces.chain([remember_destination(), manager], match=found))
            chains.append(pieces.chain([remember_destination(), *proxied], match=pieces.to_address(host)))
    if chains:
        filters = [pieces.listener_filter("original_dst", "OriginalDst"), pieces.inspector("http")]
        parts.listeners.append(pieces.internal_listener(_DIRECT, chains, filters=filters))
    return hosts


def _names(subject: Subject, workload: WorkloadView) -> bool:
    """Whether this is the waypoint that the workload names."""
    assert workload.waypoint is not None
    found = subject.mesh.destination(workload.waypoint)
    if isinstance(found, ServiceView):
        return any(s.key == found.key for s in subject.mesh.services_of(subject.local))
    return found is not None and found.uid == subject.local.uid


def _chains(
    subject: Subject, parts: Parts, upstreams: Upstreams, routes: Routes, service: L7Service, port: L7Port
) -> list[Json]:
    """One service port's: HTTP, TCP, or by what the first bytes are."""
    view = subject.configured
    config = view.config
    authorization = Authorization(
        policies=view.policy_resources(service.key), trust_domain=config.trust_domain, name=by_filter_state
    )
    authorization.tell_undone(parts)
    cluster = view.cluster(service.key, port.port)
    assert cluster is not None, "BUG: a service without its own port"
    name = f"inbound-vip|{port.port}|{{}}|{service.hostname}"
    match = pieces.to_address(service.address, port.port)
    made: list[Json] = []
    if port.is_http or not port.protocol:
        host = routes.host_of_service(service, port.port)
        filters = [*authorization.http_filters(), *([fault_filter()] if routes.with_faults else [])]
        manager = http.manager(name.format("http"), [host], filters=filters, paths=config.path_normalization)
        found = [*http.HTTP1_PROTOCOLS, *http.HTTP2_PROTOCOLS]
        made.append(pieces.chain([manager], match=match if port.is_http else match | {"application_protocols": found}))
    if not port.is_http:
        proxied = [*authorization.network_filters(name.format("tcp")), routes.of_connections(service, port.port)]
        made.append(pieces.chain(proxied, match=match))
    return made
