"""15001: what the workload calls. Mutual TLS towards whoever has a sidecar, a tunnel towards ambient workloads, plain
bytes towards the rest (facts/hbone 4.3, 4.4).
"""

from __future__ import annotations

import asyncio
import socket

from planes.l7.captured import captured
from planes.l7.dial import Security, Way
from planes.l7.exchange import Exchange
from planes.l7.members import Members
from planes.l7.outbound import OutboundSide
from planes.l7.program import L7Program
from planes.l7.serve import Downstream
from planes.mesh import net
from planes.mesh.metrics import Peer
from planes.mesh.view import ServiceView, WorkloadView


class Outbound(OutboundSide):
    def __init__(self, program: L7Program) -> None:
        super().__init__(program)
        self._server: asyncio.AbstractServer | None = None

    async def listen(self, sock: socket.socket) -> None:
        self._server = await net.serve(self.loop, lambda: captured(self.loop, self._captured), sock)

    def _captured(self, transport: asyncio.Transport) -> asyncio.Protocol | None:
        program = self.program
        ip, port = destination = net.captured_destination(transport, program.settings.original_destination)
        if port in program.settings.ports.own and (ip in program.local.addresses or ip.startswith("127.")):
            program.warn(f"loop: {ip}:{port} is a port of the proxy itself")
            return None
        return self.serve_captured(transport.get_extra_info("peername")[:2], destination)

    def members(self) -> Members:
        return Members(self.program)

    def straight(self, downstream: Downstream, *, http2: bool, tcp: bool) -> tuple[Way, WorkloadView | None]:
        program = self.program
        workload = program.mesh.workload_at(program.local.network, downstream.destination[0])
        return Way(security=Security.PLAIN, address=downstream.destination, http2=http2), workload

    def tcp_peers(self, way: Way | None, workload: WorkloadView | None) -> tuple[Peer, Peer]:
        return self._peers(workload, secured=way is not None and way.security is not Security.PLAIN)

    def described(self, exchange: Exchange) -> tuple[Peer, Peer, ServiceView | None]:
        workload, service = self._members.named(exchange)
        secured = workload is not None and self._members.security_of(workload) is not Security.PLAIN
        return (*self._peers(workload, secured=secured), service)

    def _peers(self, workload: WorkloadView | None, *, secured: bool) -> tuple[Peer, Peer]:
        return (
            Peer(workload=self.program.local, principal=self.program.uri if secured else None),
            Peer(workload=workload, principal=str(workload.identity) if secured and workload is not None else None),
        )

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        super().stop()
