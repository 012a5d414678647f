"""15001: what the workload calls. By the port it is HTTP (routed by host, per request), TCP of a service, or unknown.

Istio's client side: routes, balancing and retries happen here; mutual TLS towards whoever has a sidecar, a tunnel
towards ambient workloads, plain bytes towards the rest (facts/hbone 4.2 to 4.4).
"""

from __future__ import annotations

import asyncio
import socket

from planes.l7.accept import Detecting
from planes.l7.captured import captured, discard, original_destination, pipe_to
from planes.l7.decision import Decision, Kind
from planes.l7.detect import Detected
from planes.l7.dial import Security, Way
from planes.l7.exchange import Exchange
from planes.l7.members import Members
from planes.l7.program import L7Program
from planes.l7.serve import Downstream, HttpSide
from planes.l7.upstream import Upstream
from planes.l7.view import Cluster
from planes.mesh import net
from planes.mesh.metrics import Peer
from planes.mesh.relay import Pipe
from planes.mesh.view import ServiceView, WorkloadView


class Outbound(HttpSide):
    reporter = "source"

    def __init__(self, program: L7Program) -> None:
        super().__init__(program)
        self._server: asyncio.AbstractServer | None = None
        self._members = Members(program)
        self._pipes: set[Pipe] = set()

    async def listen(self, sock: socket.socket) -> None:
        self._server = await net.serve(self.loop, lambda: captured(self.loop, self._captured), sock)

    def reloaded(self) -> None:
        self._members = Members(self.program)

    # -- connections ---------------------------------------------------------------------------------------------------

    def _captured(self, transport: asyncio.Transport) -> asyncio.Protocol | None:
        """The protocol that serves a connection just captured; its destination says which."""
        program = self.program
        destination = original_destination(transport, program.settings.original_destination)
        source = transport.get_extra_info("peername")[:2]
        ip, port = destination
        if port in program.settings.ports.own:
            program.warn(f"loop: {ip}:{port} is a port of the proxy itself")
            return None
        downstream = Downstream(source=source, destination=destination, workload=program.local)
        service = program.l7.by_address.get(ip)
        entry = service.port(port) if service is not None else None
        if entry is not None and not entry.is_http:
            assert service is not None
            if entry.protocol == "tcp":
                return self._tcp(transport, downstream, program.l7.cluster(service.key, port))
            return Detecting(  # its protocol is to be found out
                self.loop,
                lambda found, held: self._detected(found, held, downstream, program.l7.cluster(service.key, port)),
                limit_s=program.settings.detection_limit_s,
            )
        if entry is not None or port in self._http_ports():
            return Detecting(self.loop, lambda found, held: self._detected(found, held, downstream, None))
        return self._tcp(transport, downstream, None)

    def _http_ports(self) -> frozenset[int]:
        """Where Istio has a listener for any address, routed by host."""
        return self._members.http_ports

    def _detected(
        self, found: Detected, transport: asyncio.Transport, downstream: Downstream, cluster: Cluster | None
    ) -> asyncio.Protocol | None:
        if found in (Detected.HTTP1, Detected.HTTP2):
            return self.serve(found, downstream)
        return self._tcp(transport, downstream, cluster)

    def _tcp(self, transport: asyncio.Transport, downstream: Downstream, cluster: Cluster | None) -> asyncio.Protocol:
        """Bytes as they are: to an endpoint of a service, or where the connection was going."""
        way: Way | None = Way(security=Security.PLAIN, address=downstream.destination)
        if cluster is not None:
            picked = self._members.pick(cluster, self.draw, tcp=True)
            way = picked.way if picked is not None else None
        pipe = pipe_to(self.program, way, self._pipes, reporter="source", downstream=downstream)
        if way is None:
            self.loop.call_soon(discard, pipe)
        return pipe

    # -- requests ------------------------------------------------------------------------------------------------------

    def decide(self, exchange: Exchange) -> Decision:
        downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
        ip, port = downstream.destination
        return self.program.table.decide(exchange.request, address=ip, port=port, draw=self.program.draw)

    def choose(self, exchange: Exchange) -> Upstream | None:
        decision = exchange.decision
        http2 = exchange.request.version == "2" or self.program.settings.http2_upstream
        if decision.kind is Kind.PASSTHROUGH:
            downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
            http2 = exchange.request.version == "2" and not exchange.request.upgrade
            held = downstream.upstreams.get(http2)
            if held is None:
                way = Way(security=Security.PLAIN, address=downstream.destination, http2=http2)
                held = downstream.upstreams[http2] = self.program.dialler.upstream(way)
            return held
        assert decision.cluster is not None
        source_ip = exchange.connection.context.source[0]  # type: ignore[attr-defined]
        return self._members.choose(decision.cluster, exchange, http2=http2, source_ip=source_ip)

    def described(self, exchange: Exchange) -> tuple[Peer, Peer, ServiceView | None]:
        local = self.program.local
        workload, service = self._members.named(exchange)
        mtls = workload is not None and self._is_secured(workload)
        return (
            Peer(workload=local, principal=self.program.uri if mtls else None),
            Peer(workload=workload, principal=str(workload.identity) if mtls and workload is not None else None),
            service,
        )

    def _is_secured(self, workload: WorkloadView) -> bool:
        return self._members.security_of(workload) is not Security.PLAIN

    # -- ends ----------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        if self._server is not None:
            self._server.close()
        super().drain()

    def stop(self) -> None:
        super().stop()
        for pipe in list(self._pipes):
            pipe.drop()

    @property
    def busy(self) -> bool:
        return super().busy or bool(self._pipes)
