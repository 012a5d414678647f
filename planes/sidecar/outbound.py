"""15001: what the workload calls. By the port it is HTTP (routed by host, per request), TCP of a service, or unknown.

Istio's client side: routes, balancing and retries happen here; mutual TLS towards whoever has a sidecar, a tunnel
towards ambient workloads, plain bytes towards the rest (facts/hbone 4.2 to 4.4).
"""

from __future__ import annotations

import asyncio
import socket

from planes.l7.accept import Detecting
from planes.l7.captured import captured, discard, pipe_to
from planes.l7.decision import Decision, Kind
from planes.l7.detect import Detected
from planes.l7.dial import Security, Way
from planes.l7.exchange import Exchange
from planes.l7.group import UNLIMITED
from planes.l7.members import Members
from planes.l7.program import L7Program
from planes.l7.serve import Downstream, HttpSide
from planes.l7.upstream import Upstream
from planes.l7.view import L7Service
from planes.mesh import net
from planes.mesh.metrics import Peer, Reporter
from planes.mesh.relay import Pipe
from planes.mesh.view import ServiceView, WorkloadView
from testbed.model.httppath import normalize


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
        destination = net.captured_destination(transport, program.settings.original_destination)
        source = transport.get_extra_info("peername")[:2]
        ip, port = destination
        if port in program.settings.ports.own and (ip in program.local.addresses or ip.startswith("127.")):
            program.warn(f"loop: {ip}:{port} is a port of the proxy itself")
            return None
        downstream = Downstream(source=source, destination=destination, workload=program.local)
        service = program.l7.by_address.get(ip)
        entry = service.port(port) if service is not None else None
        if entry is not None and not entry.is_http:
            assert service is not None
            if entry.protocol == "tcp":
                return self._tcp(transport, downstream, service)
            return Detecting(  # its protocol is to be found out
                self.loop,
                lambda found, held: self._detected(found, held, downstream, service),
                limit_s=program.settings.detection_limit_s,
            )
        if entry is not None or port in self._http_ports():
            return Detecting(self.loop, lambda found, held: self._detected(found, held, downstream, None))
        return self._tcp(transport, downstream, None)

    def _http_ports(self) -> frozenset[int]:
        """Where Istio has a listener for any address, routed by host."""
        return self._members.http_ports

    def _detected(
        self, found: Detected, transport: asyncio.Transport, downstream: Downstream, called: L7Service | None
    ) -> asyncio.Protocol | None:
        if found in (Detected.HTTP1, Detected.HTTP2):
            return self.serve(found, downstream)
        return self._tcp(transport, downstream, called)

    def _tcp(
        self, transport: asyncio.Transport, downstream: Downstream, called: L7Service | None
    ) -> asyncio.Protocol:
        """Bytes as they are: to an endpoint of a service, or, if any is let out, where the connection was going."""
        program = self.program
        way: Way | None = None
        workload: WorkloadView | None = None
        service: ServiceView | None = None
        group = UNLIMITED
        if called is not None:
            cluster = program.table.connections(called, downstream.destination[1]).choose(self.draw)
            service = program.mesh.service_by_key(cluster.service_key if cluster is not None else called.key)
            picked = None
            if cluster is not None:
                picked = self._members.pick(cluster, self.draw, tcp=True, source_ip=downstream.source[0])
            if picked is not None:
                way, workload, group = picked.way, picked.workload, picked.upstream.group
        elif program.l7.config.outbound_any:
            way = Way(security=Security.PLAIN, address=downstream.destination)
            workload = program.mesh.workload_at(program.local.network, downstream.destination[0])
        mtls = way is not None and way.security is not Security.PLAIN
        peers = (
            Peer(workload=program.local, principal=program.uri if mtls else None),
            Peer(workload=workload, principal=str(workload.identity) if mtls and workload is not None else None),
            service,
        )
        pipe = pipe_to(program, way, self._pipes, reporter="source", downstream=downstream, peers=peers, group=group)
        if way is None:
            program.tcp_metrics.fail(Reporter.SOURCE, *peers, mtls=False)
            self.loop.call_soon(self._discard, pipe)
        return pipe

    def _discard(self, pipe: Pipe) -> None:
        """Nowhere to go: Istio's black hole, or no healthy endpoint."""
        self._pipes.discard(pipe)
        discard(pipe)

    # -- requests ------------------------------------------------------------------------------------------------------

    def decide(self, exchange: Exchange) -> Decision:
        downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
        ip, port = downstream.destination
        # as both proxies do: what a route is chosen by must be what the server's policies will judge
        exchange.request.path = normalize(exchange.request.path, self.program.l7.config.path_normalization)
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
        """What the workload calls is not drained: it may call until its sidecar ends, as in Istio."""

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        super().stop()
        for pipe in list(self._pipes):
            pipe.drop()

    @property
    def busy(self) -> bool:
        return super().busy or bool(self._pipes)
