"""What a workload calls, at whichever proxy captures it: by the port it is HTTP (routed by host, per request), TCP of a
service, or unknown. Istio's client side: routes, balancing and retries happen here (facts/hbone 4.2 to 4.4).

Sidecars and nodes' proxies differ in how an endpoint is reached and in whose name; that is what each adds.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod

from planes.l7.accept import Detecting
from planes.l7.captured import discard, pipe_to
from planes.l7.decision import Decision, Kind
from planes.l7.detect import Detected
from planes.l7.dial import Way
from planes.l7.exchange import Exchange
from planes.l7.group import UNLIMITED
from planes.l7.members import Members
from planes.l7.program import L7Program
from planes.l7.serve import Downstream, HttpSide
from planes.l7.upstream import Upstream
from planes.l7.view import L7Service
from planes.mesh.metrics import Peer, Reporter
from planes.mesh.relay import Pipe
from planes.mesh.view import ServiceView, WorkloadView
from testbed.model.httppath import normalize


class OutboundSide(HttpSide):
    reporter = "source"

    def __init__(self, program: L7Program) -> None:
        super().__init__(program)
        self._members = self.members()
        self._pipes: set[Pipe] = set()

    @abstractmethod
    def members(self) -> Members:
        """Of the program's view."""

    @abstractmethod
    def straight(self, downstream: Downstream, *, http2: bool, tcp: bool) -> tuple[Way, WorkloadView | None]:
        """To where a connection was going that no service is asked for by."""

    @abstractmethod
    def tcp_peers(self, way: Way | None, workload: WorkloadView | None) -> tuple[Peer, Peer]: ...

    def reloaded(self) -> None:
        self._members = self.members()

    # -- connections ---------------------------------------------------------------------------------------------------

    def serve_captured(self, source: tuple[str, int], destination: tuple[str, int]) -> asyncio.Protocol:
        """The protocol that serves a connection just captured; its destination says which."""
        program = self.program
        downstream = Downstream(source=source, destination=destination, workload=program.local)
        ip, port = destination
        service = program.l7.by_address.get(ip)
        entry = service.port(port) if service is not None else None
        if entry is not None and entry.protocol == "tcp":
            return self._tcp(downstream, service)
        # Istio has a listener for any address at every port that is HTTP of some service, routed by host.
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
            way, workload = self.straight(downstream, http2=False, tcp=True)
        peers = (*self.tcp_peers(way, workload), service)
        pipe = pipe_to(
            program, way, self._pipes, reporter=self.reporter, downstream=downstream, peers=peers, group=group
        )
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
        downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
        decision, http2 = exchange.decision, exchange.request.version == "2"
        if decision.kind is Kind.PASSTHROUGH:
            http2 = http2 and not exchange.request.upgrade
            held = downstream.upstreams.get(http2)
            if held is None:
                way, _ = self.straight(downstream, http2=http2, tcp=False)
                held = downstream.upstreams[http2] = self.program.dialler.upstream(way)
            return held
        assert decision.cluster is not None
        http2 = http2 or self.program.settings.http2_upstream
        return self._members.choose(decision.cluster, exchange, http2=http2, source_ip=downstream.source[0])

    # -- ends ----------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """What the workload calls is not drained: it may call until its proxy ends, as in Istio."""

    def stop(self) -> None:
        super().stop()
        for pipe in list(self._pipes):
            pipe.drop()

    @property
    def busy(self) -> bool:
        return super().busy or bool(self._pipes)
