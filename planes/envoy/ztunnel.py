"""Envoy in the ztunnel role, for one workload: captured TCP into HBONE, HBONE back into TCP, L4 policy. Pure.

Envoy cannot enter other network namespaces, so this role runs once per workload, in its namespace, and leaves captured
traffic by the proxy's user id as a sidecar does. On the wire nothing tells it from a node's ztunnel.
"""

from __future__ import annotations

from collections.abc import Callable

from planes.envoy import pieces, rbac
from planes.envoy.parts import Parts, Subject
from planes.envoy.pieces import PASSTHROUGH_SOURCE, Identity, Json
from planes.envoy.tunnels import Tunnels, server_tls
from planes.envoy.upstreams import Upstreams
from planes.l7.balance import hosts
from planes.mesh import baggage
from planes.mesh.route import join
from planes.mesh.view import HBONE_PORT, GatewayAddress, MeshView, Protocol, ServiceView, WorkloadView

OUTBOUND_PORT = 15001
INBOUND_PORT = 15006
_REFUSALS = {403: 401, 404: 400}
"""A ztunnel says 401 for policy and 400 for an address that is not its workload's (facts/hbone 1.5)."""


def build(subject: Subject, parts: Parts) -> None:
    view, local = subject.mesh, subject.local
    tunnels = Tunnels(identity=subject.identity, baggage=baggage.render(local), keylog=subject.keylog)
    parts.listeners.append(_outbound(view, local, tunnels, parts))
    parts.listeners += _inbound(view, local, subject.identity, subject.keylog, parts)


def _outbound(view: MeshView, local: WorkloadView, tunnels: Tunnels, parts: Parts) -> Json:
    parts.cluster(pieces.original_destination_cluster("passthrough"))
    chains = []
    for service in view.services:
        for port in service.ports:
            into = _to_service(view, local, service, port, tunnels, parts)
            for _, vip in service.vips:
                chains.append(pieces.chain([into(vip)], match=pieces.to_address(vip, port)))
    for workload in view.workloads:
        if workload.uid == local.uid:
            continue
        proxy = None
        if workload.waypoint is not None:
            proxy = _to_waypoint(view, workload.waypoint, "%DOWNSTREAM_LOCAL_ADDRESS%", tunnels, parts)
        for host in workload.addresses:
            if workload.waypoint is None and workload.protocol is Protocol.HBONE:
                cluster = tunnels.to(parts, host, [(host, HBONE_PORT)], [str(workload.identity)])
                proxy = tunnels.proxy(cluster, "%DOWNSTREAM_LOCAL_ADDRESS%")
            if proxy is not None:
                chains.append(pieces.chain([proxy], match=pieces.to_address(host)))
    return pieces.listener(
        "outbound", "0.0.0.0", OUTBOUND_PORT, chains,
        default=pieces.chain([pieces.tcp_proxy("passthrough")]), original_destination=True,
    )  # fmt: skip


def _to_service(
    view: MeshView, local: WorkloadView, service: ServiceView, port: int, tunnels: Tunnels, parts: Parts
) -> Callable[[str], Json]:
    """Given the address that was called: the filter that takes a connection there."""
    waypoint = service.waypoint
    if waypoint is not None:
        return lambda vip: _to_waypoint(view, waypoint, join(vip, port), tunnels, parts)
    members = hosts(view.endpoints(service), service, port, local)
    cluster = Upstreams(parts=parts, tunnels=tunnels).cluster(
        f"service|{service.hostname}|{port}", members, policy="RANDOM"
    )
    return lambda vip: pieces.tcp_proxy(cluster)


def _to_waypoint(view: MeshView, waypoint: GatewayAddress, authority: str, tunnels: Tunnels, parts: Parts) -> Json:
    """The waypoint is told what was called. One that is named and not known ends the connection: traffic does not go
    round it (facts/hbone 7, row 4)."""
    found = view.destination(waypoint)
    pods = [e.workload for e in view.endpoints(found)] if isinstance(found, ServiceView) else [found]
    reached = [w for w in pods if w is not None and w.addresses]
    if not reached:
        return pieces.tcp_proxy(parts.cluster(pieces.cluster(f"no-waypoint|{waypoint}", [])))
    cluster = tunnels.to(
        parts, f"waypoint|{waypoint}", [(w.addresses[0], waypoint.hbone_port) for w in reached],
        sorted({str(w.identity) for w in reached}),
    )  # fmt: skip
    return tunnels.proxy(cluster, authority)


def _inbound(view: MeshView, local: WorkloadView, identity: Identity, keylog: str | None, parts: Parts) -> list[Json]:
    policies = view.policies_for(local)
    parts.cluster(pieces.original_destination_cluster("application", header=":authority", source=PASSTHROUGH_SOURCE))
    parts.cluster(pieces.original_destination_cluster("application-plain", source=PASSTHROUGH_SOURCE))
    terminator = pieces.connect_terminator(
        "inbound",
        domains=[f"{host}:*" for host in local.addresses],
        cluster_name="application",
        filters=rbac.http_filters(policies, by_authority=True),
        refusals=_REFUSALS,
    )
    hbone = pieces.listener(
        "inbound", "0.0.0.0", HBONE_PORT,
        [pieces.chain([terminator], transport=server_tls(identity, local.trust_domain, keylog))],
    )  # fmt: skip
    plain = pieces.listener(
        "inbound-plain", "0.0.0.0", INBOUND_PORT,
        [
            pieces.chain(
                [*rbac.network_filters(policies, "inbound_plain"), pieces.tcp_proxy("application-plain")]
            )
        ],
        original_destination=True,
    )  # fmt: skip
    return [hbone, plain]
