"""15001, a workload's share of it: what it calls, routed as by a sidecar, then tunnelled to another node's proxy."""

from __future__ import annotations

from planes.l7.dial import Security, Way
from planes.l7.exchange import Exchange
from planes.l7.outbound import OutboundSide
from planes.l7.serve import Downstream
from planes.mesh.metrics import Peer
from planes.mesh.view import ServiceView, WorkloadView
from planes.node_l7.members import NodeMembers


class Outbound(OutboundSide):
    def members(self) -> NodeMembers:
        return NodeMembers(self.program)

    def reloaded(self) -> None:
        super().reloaded()
        for connection in self.connections:
            connection.context.upstreams.clear()  # type: ignore[attr-defined]

    def straight(self, downstream: Downstream, *, http2: bool, tcp: bool) -> tuple[Way, WorkloadView | None]:
        """A workload's own address, too, is reached through its node's proxy."""
        ip, port = downstream.destination
        workload = self.program.mesh.workload_at(self.program.local.network, ip)
        if workload is None:
            return Way(security=Security.PLAIN, address=(ip, port), http2=http2, tcp=tcp), None
        return self._members.way(workload, port, None, http2=http2, tcp=tcp), workload

    def tcp_peers(self, way: Way | None, workload: WorkloadView | None) -> tuple[Peer, Peer]:
        return self._peers(workload)

    def described(self, exchange: Exchange) -> tuple[Peer, Peer, ServiceView | None]:
        workload, service = self._members.named(exchange)
        return (*self._peers(workload), service)

    def _peers(self, workload: WorkloadView | None) -> tuple[Peer, Peer]:
        """Principals are those of the proxies: nobody else has one."""
        secured = workload is not None and self._members.security_of(workload) is Security.HBONE
        way = self._members.way(workload, 0, None, http2=False, tcp=True) if secured and workload is not None else None
        return (
            Peer(workload=self.program.local, principal=self.program.uri if secured else None),
            Peer(workload=workload, principal=next(iter(way.expected)) if way is not None else None),
        )

    def sweep(self, now_s: float) -> None:
        super().sweep(now_s)
        self.program.dialler.expire()

    def stop(self) -> None:
        super().stop()
        self.program.dialler.stop()
