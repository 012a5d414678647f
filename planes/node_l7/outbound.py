"""15001, a workload's share of it: what it calls, routed as by a sidecar, then tunnelled to another node's proxy."""

from __future__ import annotations

import asyncio

from planes.l7.accept import Detecting
from planes.l7.captured import discard, pipe_to
from planes.l7.decision import Decision, Kind
from planes.l7.detect import Detected
from planes.l7.dial import Security, Way
from planes.l7.exchange import Exchange
from planes.l7.group import UNLIMITED
from planes.l7.program import L7Program
from planes.l7.serve import Downstream, HttpSide
from planes.l7.upstream import Upstream
from planes.l7.view import L7Service
from planes.mesh.metrics import Peer, Reporter
from planes.mesh.relay import Pipe
from planes.mesh.view import ServiceView, WorkloadView
from planes.node_l7.members import NodeMembers
from testbed.model.httppath import normalize


class Outbound(HttpSide):
    reporter = "source"

    def __init__(self, program: L7Program) -> None:
        super().__init__(program)
        self._members: NodeMembers = NodeMembers(program)
        self._pipes: set[Pipe] = set()

    def reloaded(self) -> None:
        self._members = NodeMembers(self.program)
        for connection in self.connections:
            connection.context.upstreams.clear()  # type: ignore[attr-defined]

    # -- connections ---------------------------------------------------------------------------------------------------

    def serve_captured(self, source: tuple[str, int], destination: tuple[str, int]) -> asyncio.Protocol:
        program = self.program
        downstream = Downstream(source=source, destination=destination, workload=program.local)
        ip, port = destination
        service = program.l7.by_address.get(ip)
        entry = service.port(port) if service is not None else None
        if entry is not None and entry.protocol == "tcp":
            return self._tcp(downstream, service)
        if entry is None and port not in self._members.http_ports:
            return self._tcp(downstream, None)
        declared = entry is None or entry.is_http
        return Detecting(
            self.loop,
            lambda found, _: self._detected(found, downstream, None if declared else service),
            limit_s=None if declared else program.settings.detection_limit_s,
        )

    def _detected(self, found: Detected, downstream: Downstream, called: L7Service | None) -> asyncio.Protocol:
        if found in (Detected.HTTP1, Detected.HTTP2):
            return self.serve(found, downstream)
        return self._tcp(downstream, called)

    def _tcp(self, downstream: Downstream, called: L7Service | None) -> asyncio.Protocol:
        """Bytes as they are: to an endpoint of a service, or where the connection was going."""
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
            way, workload = self._straight(downstream, http2=False, tcp=True)
        peers = (*self._peers(workload), service)
        pipe = pipe_to(
            program, way, self._pipes, reporter=self.reporter, downstream=downstream, peers=peers, group=group
        )
        if way is None:
            program.tcp_metrics.fail(Reporter.SOURCE, *peers, mtls=False)
            self.loop.call_soon(self._discard, pipe)
        return pipe

    def _straight(self, downstream: Downstream, *, http2: bool, tcp: bool) -> tuple[Way, WorkloadView | None]:
        """To an address that is no service's. A workload's own address, too, is reached through its node's proxy."""
        ip, port = downstream.destination
        workload = self.program.mesh.workload_at(self.program.local.network, ip)
        if workload is None:
            return Way(security=Security.PLAIN, address=(ip, port), http2=http2, tcp=tcp), None
        return self._members.way(workload, port, None, http2=http2, tcp=tcp), workload

    def _discard(self, pipe: Pipe) -> None:
        self._pipes.discard(pipe)
        discard(pipe)

    # -- requests ------------------------------------------------------------------------------------------------------

    def decide(self, exchange: Exchange) -> Decision:
        downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
        ip, port = downstream.destination
        exchange.request.path = normalize(exchange.request.path, self.program.l7.config.path_normalization)
        return self.program.table.decide(exchange.request, address=ip, port=port, draw=self.program.draw)

    def choose(self, exchange: Exchange) -> Upstream | None:
        downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
        http2 = exchange.request.version == "2"
        if exchange.decision.kind is Kind.PASSTHROUGH:
            http2 = http2 and not exchange.request.upgrade
            held = downstream.upstreams.get(http2)
            if held is None:
                way, _ = self._straight(downstream, http2=http2, tcp=False)
                held = downstream.upstreams[http2] = self.program.dialler.upstream(way)
            return held
        assert exchange.decision.cluster is not None
        return self._members.choose(exchange.decision.cluster, exchange, http2=http2, source_ip=downstream.source[0])

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

    # -- ends ----------------------------------------------------------------------------------------------------------

    def sweep(self, now_s: float) -> None:
        super().sweep(now_s)
        self.program.dialler.expire()

    def drain(self) -> None:
        """What the workload calls is not drained: it may call until the proxy ends."""

    def stop(self) -> None:
        super().stop()
        for pipe in list(self._pipes):
            pipe.drop()
        self.program.dialler.stop()

    @property
    def busy(self) -> bool:
        return super().busy or bool(self._pipes)
