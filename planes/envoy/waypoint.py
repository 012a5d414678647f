"""Envoy as a waypoint: CONNECT for a service's address in, L7 once, CONNECT to an endpoint out. Pure.

Istio's shape (facts/hbone 3.3): `connect_terminate` ends the tunnel and says by filter state whose it is and where it
led; `main_internal` has a chain per service port; `connect_originate` opens the tunnel onward. Where Istio answers 200
for any authority and then closes, a CONNECT for what is not served here is answered 404, as by our own.

Left undone: traffic to a workload's own address. Such a waypoint answers 404, and the ztunnel role here goes round it.
"""

from __future__ import annotations

from planes.envoy import http, pieces
from planes.envoy.authorization import Authorization, by_filter_state
from planes.envoy.parts import Parts, Subject
from planes.envoy.pieces import Json
from planes.envoy.routes import Routes, fault_filter
from planes.envoy.tunnels import Tunnels, inwards, remember_peer, server_tls
from planes.envoy.upstreams import Upstreams
from planes.l7.view import L7Port, L7Service
from planes.mesh import baggage
from planes.mesh.route import join
from planes.mesh.view import HBONE_PORT, ServiceView, WorkloadView

_MAIN = "main_internal"


def build(subject: Subject, parts: Parts) -> None:
    view, local = subject.configured, subject.local
    tunnels = Tunnels(identity=subject.identity, baggage=baggage.render(local), keylog=subject.keylog)
    upstreams = Upstreams(parts=parts, tunnels=tunnels)
    routes = Routes(view, parts, lambda cluster: upstreams.of(subject, cluster))
    served = [(view.services[key], port) for key in view.config.serves for port in view.services[key].ports]
    for workload in subject.mesh.workloads:
        if workload.waypoint is not None and _names(subject, workload):
            named = f"{workload.namespace}/{workload.name}"
            parts.leave_undone(f"waypoint of workload {named}: its own address is not served")
    terminator = pieces.connect_terminator(
        "connect_terminate",
        domains=[join(service.address, port.port) for service, port in served],
        cluster_name=inwards(parts, _MAIN),
        filters=[remember_peer()],
    )
    parts.listeners.append(
        pieces.listener(
            "connect_terminate", "0.0.0.0", HBONE_PORT,
            [pieces.chain([terminator], transport=server_tls(subject.identity, local.trust_domain, subject.keylog))],
        )
    )  # fmt: skip
    chains = [made for service, port in served for made in _chains(subject, parts, upstreams, routes, service, port)]
    known = sorted({port.port for _, port in served if port.protocol})
    filters = [pieces.listener_filter("original_dst", "OriginalDst")]
    if any(not port.protocol for _, port in served):
        filters.append(pieces.inspector("http", not_at=known))
    parts.listeners.append(pieces.internal_listener(_MAIN, chains, filters=filters))


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
        proxied = [*authorization.network_filters(name.format("tcp")), pieces.tcp_proxy(upstreams.of(subject, cluster))]
        made.append(pieces.chain(proxied, match=match))
    return made
