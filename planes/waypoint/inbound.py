"""15008: tunnels for a service's address; inside, per request: policy on the client's own identity, the route, an
endpoint, and onward by HBONE to the endpoint's ztunnel under the waypoint's identity (facts/hbone 3.2 to 3.6).
"""

from __future__ import annotations

import asyncio
import socket

from planes.l7.accept import Detecting
from planes.l7.captured import discard, pipe_to
from planes.l7.decision import Decision, Kind
from planes.l7.detect import Detected
from planes.l7.exchange import Exchange
from planes.l7.members import Members
from planes.l7.program import L7Program
from planes.l7.serve import Downstream, HttpSide, deny
from planes.l7.tunnels import Tunnels
from planes.l7.upstream import Upstream
from planes.l7.view import L7Service
from planes.mesh.metrics import Peer
from planes.mesh.relay import Pipe
from planes.mesh.view import ServiceView, WorkloadView
from testbed.model.httppath import normalize
from testbed.model.l7policy import Judge


class Inbound(HttpSide):
    reporter = "waypoint"

    def __init__(self, program: L7Program) -> None:
        super().__init__(program)
        self._tunnels = Tunnels(program, self._target, self._tunnelled)
        self._members = Members(program, speaks_mtls=False)
        self._pipes: set[Pipe] = set()

    async def listen(self, sock: socket.socket) -> None:
        await self._tunnels.listen(sock)

    def reloaded(self) -> None:
        """The next request of every connection meets the new policies and routes."""
        self._members = Members(self.program, speaks_mtls=False)
        for connection in self.connections:
            downstream: Downstream = connection.context  # type: ignore[assignment]
            downstream.judge = self._judge(downstream)

    # -- tunnels -------------------------------------------------------------------------------------------------------

    def _target(self, host: str, port: int, is_address: bool) -> tuple[int, tuple[str, int]]:
        """A port of a service it serves, by address or name. Envoy would say 200 and then close; 404 says why."""
        service = self._service(host)
        if service is None or service.port(port) is None:
            return 404, ("", 0)
        return 200, (host, port)

    def _service(self, host: str) -> L7Service | None:
        l7 = self.program.l7
        service = l7.by_address.get(host) or l7.by_hostname.get(host)
        return service if service is not None and service.key in l7.config.serves else None

    def _tunnelled(self, downstream: Downstream) -> asyncio.Protocol:
        downstream.workload = self._source(downstream)
        host, port = downstream.destination
        service = self._service(host)
        entry = service.port(port) if service is not None else None
        protocol = entry.protocol if entry is not None else "tcp"
        if protocol == "tcp":
            return self._tcp(downstream)
        return Detecting(
            self.loop, lambda found, _: self._detected(found, downstream),
            limit_s=self.program.settings.detection_limit_s if not protocol else None,
        )  # fmt: skip

    def _detected(self, found: Detected, downstream: Downstream) -> asyncio.Protocol:
        if found in (Detected.HTTP1, Detected.HTTP2):
            downstream.judge = self._judge(downstream)
            return self.serve(found, downstream)
        return self._tcp(downstream)

    def _tcp(self, downstream: Downstream) -> asyncio.Protocol:
        program, way = self.program, None
        host, port = downstream.destination
        service = self._service(host)
        verdict = program.l7.policies(service.key if service else None).decide_tcp(self._facts(downstream))
        cluster = program.l7.cluster(service.key, port) if service is not None else None
        if verdict.allowed and cluster is not None:
            picked = self._members.pick(cluster, self.draw, tcp=True)
            way = picked.way if picked is not None else None
        pipe = pipe_to(program, way, self._pipes, reporter="destination", downstream=downstream)
        if way is None:
            self.loop.call_soon(discard, pipe)
        return pipe

    # -- facts ---------------------------------------------------------------------------------------------------------

    def _source(self, downstream: Downstream) -> WorkloadView | None:
        found = self.program.mesh.workload_at(self.program.local.network, downstream.source[0])
        return found if found is not None and str(found.identity) == downstream.identity else None

    def _facts(self, downstream: Downstream):  # type: ignore[no-untyped-def]
        return downstream.policy_facts(*downstream.destination)

    def _judge(self, downstream: Downstream) -> Judge:
        service = self._service(downstream.destination[0])
        return self.program.l7.policies(service.key if service else None).judge(self._facts(downstream))

    # -- requests ------------------------------------------------------------------------------------------------------

    def decide(self, exchange: Exchange) -> Decision:
        downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
        request, program, judge = exchange.request, self.program, downstream.judge
        request.path = normalize(request.path, program.l7.config.path_normalization)
        assert judge is not None
        verdict = judge.fixed or judge.decide(request)
        if not verdict.allowed:
            return deny(verdict.reason)
        host, port = downstream.destination
        return program.table.decide(request, address=host, port=port, draw=program.draw)

    def choose(self, exchange: Exchange) -> Upstream | None:
        decision = exchange.decision
        if decision.kind is not Kind.FORWARD or decision.cluster is None:
            return None
        source_ip = exchange.connection.context.source[0]  # type: ignore[attr-defined]
        http2 = exchange.request.version == "2"
        return self._members.choose(decision.cluster, exchange, http2=http2, source_ip=source_ip)

    def described(self, exchange: Exchange) -> tuple[Peer, Peer, ServiceView | None]:
        downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
        workload, service = self._members.named(exchange)
        return (
            Peer(workload=downstream.workload, principal=downstream.identity or None),
            Peer(workload=workload, principal=str(workload.identity) if workload is not None else None),
            service,
        )

    # -- ends ----------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        self._tunnels.drain()
        super().drain()

    def stop(self) -> None:
        super().stop()
        self._tunnels.stop()
        for pipe in list(self._pipes):
            pipe.drop()

    @property
    def busy(self) -> bool:
        return super().busy or bool(self._pipes) or self._tunnels.busy
