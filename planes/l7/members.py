"""Which endpoint serves a request, and how it is reached: by mutual TLS, a tunnel, or plainly.

Made anew for every view, so nothing in it goes stale; a cluster's endpoints and their ways are worked out at its first
request. What outlives a view are connections (the dialler's) and, while the policy stays, the counts of its circuit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planes.l7.balance import Balancer, Host, hosts
from planes.l7.dial import Security, Way
from planes.l7.exchange import Exchange
from planes.l7.group import Group
from planes.l7.message import Request
from planes.l7.program import L7Program
from planes.l7.upstream import Upstream
from planes.l7.view import Cluster
from planes.mesh.view import HBONE_PORT, Protocol, ServiceView, WorkloadView
from testbed.model.traffic import TlsMode, TrafficPolicy

_BODILESS = Request(b"", b"", b"", [])
"""For picks without a request (TCP): only the source address can be hashed."""
_AS_ASKED = {
    TlsMode.DISABLE: Security.PLAIN, TlsMode.ISTIO_MUTUAL: Security.MTLS,
    TlsMode.SIMPLE: Security.REFUSED, TlsMode.MUTUAL: Security.REFUSED,
}  # fmt: skip


@dataclass(slots=True, eq=False)
class Member:
    """An endpoint of a cluster as this proxy reaches it."""

    workload: WorkloadView
    way: Way
    upstream: Upstream


class _Served:
    """A cluster with its endpoints."""

    __slots__ = ("balancer", "cluster", "group", "http2", "members", "policy", "protocol", "upgrade")

    def __init__(self, cluster: Cluster, balancer: Balancer, group: Group, protocol: str) -> None:
        self.cluster = cluster
        self.balancer = balancer
        self.group = group
        self.policy = cluster.policy
        self.members: dict[tuple[Host, bool, bool], Member] = {}
        """By host, whether HTTP/2, whether TCP."""
        pool = cluster.policy.connection_pool
        self.upgrade = pool.h2_upgrade if pool is not None else ""
        self.http2 = protocol in ("http2", "grpc")


class Members:
    def __init__(self, program: L7Program, *, through_tunnels: bool = True, speaks_mtls: bool = True) -> None:
        self._program = program
        self._mesh, self._l7 = program.mesh, program.l7
        self._sidecars = program.settings.sidecars if speaks_mtls else frozenset()
        self._through_tunnels, self._speaks_mtls = through_tunnels, speaks_mtls
        self._held: dict[Cluster, _Served] = {}
        self._named: dict[Upstream, tuple[WorkloadView, ServiceView | None]] = {}
        self.http_ports = frozenset(p.port for s in self._l7.config.services for p in s.ports if p.is_http)

    def choose(self, cluster: Cluster, exchange: Exchange, *, http2: bool, source_ip: str = "") -> Upstream | None:
        """`http2`: the client speaks it, or the mesh is set to use it between sidecars."""
        served = self._held.get(cluster) or self._serve(cluster)
        request = exchange.request
        if request.upgrade:
            http2 = False  # a WebSocket takes a connection of its own in any case
        elif served.http2 or served.upgrade == "UPGRADE":
            http2 = True
        elif served.upgrade == "DO_NOT_UPGRADE":
            http2 = request.version == "2"
        tried = [u.host for u in exchange.tried if u.host is not None] if exchange.tried else ()
        host = served.balancer.pick(request, self._program.draw, source_ip=source_ip, tried=tried)
        if host is None:
            return None
        member = served.members.get((host, http2, False)) or self._member(served, host, http2=http2, tcp=False)
        return member.upstream if member is not None else None

    def pick(self, cluster: Cluster, draw: Callable[[], float], *, tcp: bool, source_ip: str = "") -> Member | None:
        served = self._held.get(cluster) or self._serve(cluster)
        host = served.balancer.pick(_BODILESS, draw, source_ip=source_ip)
        if host is None:
            return None
        return served.members.get((host, False, tcp)) or self._member(served, host, http2=False, tcp=tcp)

    def _serve(self, cluster: Cluster) -> _Served:
        program = self._program
        service = self._mesh.service_by_key(cluster.service_key)
        found = hosts(self._l7.members(cluster, self._mesh), service, cluster.port, program.local) if service else ()
        policy = cluster.policy
        outliers = policy.outlier_detection
        balancer = Balancer(
            [h for h in found if h.address], policy.load_balancing,
            panic_share=outliers.min_health_share if outliers is not None else 0.0,
        )  # fmt: skip
        group = program.dialler.group(cluster.name, policy)
        group.detector = None
        group.watch(policy, balancer, program.loop.time())
        entry = self._l7.services.get(cluster.service_key)
        port = entry.port(cluster.port) if entry is not None else None
        served = _Served(cluster, balancer, group, port.protocol if port is not None else "")
        self._held[cluster] = served
        return served

    def _member(self, served: _Served, host: Host, *, http2: bool, tcp: bool) -> Member:
        cluster, workload = served.cluster, host.endpoint.workload
        way = self.way(workload, host.port, cluster, http2=http2, tcp=tcp)
        upstream = self._program.dialler.upstream(way, cluster.name, served.group)
        upstream.host = host
        self._named[upstream] = (workload, self._mesh.service_by_key(cluster.service_key))
        member = served.members[host, http2, tcp] = Member(workload, way, upstream)
        return member

    def named(self, exchange: Exchange) -> tuple[WorkloadView | None, ServiceView | None]:
        """Who served it, and as part of which service; for metrics."""
        if exchange.upstream is not None and exchange.upstream in self._named:
            return self._named[exchange.upstream]
        cluster = exchange.decision.cluster if exchange.decision is not None else None
        return None, self._mesh.service_by_key(cluster.service_key) if cluster is not None else None

    def security_of(self, workload: WorkloadView) -> Security:
        """Auto mTLS: a sidecar's peer gets Istio's mutual TLS, ambient workloads a tunnel (facts/hbone 4.3, 4.4)."""
        if workload.uid in self._sidecars:
            return Security.MTLS
        if workload.protocol is Protocol.HBONE and self._through_tunnels:
            return Security.HBONE
        return Security.PLAIN

    def way(self, workload: WorkloadView, port: int, cluster: Cluster | None, *, http2: bool, tcp: bool) -> Way:
        host = workload.addresses[0]
        policy: TrafficPolicy | None = cluster.policy if cluster is not None else None
        security = self.security_of(workload)
        if policy is not None and policy.tls is not None and security is not Security.HBONE:
            asked = _AS_ASKED[policy.tls.mode]
            security = asked if self._speaks_mtls or asked is Security.REFUSED else Security.PLAIN
        elif security is Security.MTLS and (workload.uid, port) in self._l7.plain_ports:
            security = Security.PLAIN
        proven = security in (Security.MTLS, Security.HBONE)
        expected = frozenset((str(workload.identity),)) if proven else frozenset()
        return Way(
            security=security, address=(host, port), http2=http2, expected=expected, tcp=tcp,
            server_name=cluster.sni if cluster is not None and security is Security.MTLS else "",
            tunnel=(host, HBONE_PORT) if security is Security.HBONE else ("", 0),
        )  # fmt: skip
