"""Which endpoint serves a request, and how it is reached: by mutual TLS, a tunnel, or plainly.

Made anew for every view, so nothing in it ever goes stale; a cluster's endpoints and their ways are worked out at its
first request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planes.l7.dial import Security, Way
from planes.l7.exchange import Exchange
from planes.l7.program import L7Program
from planes.l7.upstream import Upstream
from planes.l7.view import Cluster
from planes.mesh.view import HBONE_PORT, Protocol, ServiceView, WorkloadView
from testbed.model.traffic import TlsMode


@dataclass(slots=True, eq=False)
class Member:
    """An endpoint of a cluster as this proxy reaches it."""

    workload: WorkloadView
    way: Way
    upstream: Upstream


class Members:
    def __init__(self, program: L7Program, *, through_tunnels: bool = True, speaks_mtls: bool = True) -> None:
        self._program = program
        self._mesh, self._l7 = program.mesh, program.l7
        self._sidecars = program.settings.sidecars if speaks_mtls else frozenset()
        self._through_tunnels = through_tunnels
        self._held: dict[tuple[Cluster, bool, bool], list[Member]] = {}
        self._workload_of: dict[Upstream, tuple[WorkloadView, ServiceView | None]] = {}
        self.http_ports = frozenset(p.port for s in self._l7.config.services for p in s.ports if p.is_http)

    def choose(self, cluster: Cluster, exchange: Exchange, *, http2: bool) -> Upstream | None:
        members = self._of(cluster, http2, False)
        if len(members) == 1:
            return members[0].upstream
        if exchange.tried and len(members) > len(exchange.tried):
            members = [m for m in members if m.upstream not in exchange.tried] or members
        picked = self._least_busy(members, self._program.draw)
        return picked.upstream if picked is not None else None

    def pick(self, cluster: Cluster, draw: Callable[[], float], *, tcp: bool) -> Member | None:
        return self._least_busy(self._of(cluster, False, tcp), draw)

    def _least_busy(self, members: list[Member], draw: Callable[[], float]) -> Member | None:
        """Envoy's least request: the less busy of two drawn."""
        if not members:
            return None
        a, b = members[int(draw() * len(members))], members[int(draw() * len(members))]
        return a if a.upstream.active <= b.upstream.active else b

    def _of(self, cluster: Cluster, http2: bool, tcp: bool) -> list[Member]:
        key = (cluster, http2, tcp)
        held = self._held.get(key)
        if held is None:
            service = self._mesh.service_by_key(cluster.service_key)
            held = []
            for endpoint in self._l7.members(cluster, self._mesh):
                port = endpoint.ports.get(cluster.port) or (service.ports.get(cluster.port, 0) if service else 0)
                workload = endpoint.workload
                if not port or not workload.addresses or not endpoint.workload.capacity:
                    continue
                way = self.way(workload, port, cluster, http2=http2, tcp=tcp)
                upstream = self._program.dialler.upstream(way)
                self._workload_of[upstream] = (workload, service)
                held.append(Member(workload, way, upstream))
            self._held[key] = held
        return held

    def named(self, exchange: Exchange) -> tuple[WorkloadView | None, ServiceView | None]:
        """Who served it, and as part of which service; for metrics."""
        if exchange.upstream is not None and exchange.upstream in self._workload_of:
            return self._workload_of[exchange.upstream]
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
        security = self.security_of(workload)
        tls = cluster.policy.tls if cluster is not None else None
        if tls is not None and security is not Security.HBONE:
            security = Security.MTLS if tls.mode is TlsMode.ISTIO_MUTUAL else Security.PLAIN
        elif security is Security.MTLS and (workload.uid, port) in self._l7.plain_ports:
            security = Security.PLAIN
        expected = frozenset((str(workload.identity),)) if security is not Security.PLAIN else frozenset()
        return Way(
            security=security, address=(host, port), http2=http2, expected=expected, tcp=tcp,
            server_name=cluster.sni if cluster is not None and security is Security.MTLS else "",
            tunnel=(host, HBONE_PORT) if security is Security.HBONE else ("", 0),
        )  # fmt: skip
