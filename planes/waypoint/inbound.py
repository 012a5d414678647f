"""15008: tunnels for a service's address, or a workload's own; inside, per request: policy on the client's own
identity, the route, an endpoint, and onward by HBONE to the endpoint's ztunnel under the waypoint's identity
(facts/hbone 3.2 to 3.6).
"""

from __future__ import annotations

import asyncio
import socket

from planes.l7.accept import Detecting
from planes.l7.captured import discard, pipe_to
from planes.l7.decision import Decision, Kind
from planes.l7.detect import Detected
from planes.l7.dial import Way
from planes.l7.exchange import Exchange
from planes.l7.group import UNLIMITED, Group
from planes.l7.members import Members
from planes.l7.program import L7Program
from planes.l7.retry import DEFAULT as DEFAULT_RETRY
from planes.l7.serve import Downstream, HttpSide, deny
from planes.l7.tunnels import Tunnels
from planes.l7.upstream import Upstream
from planes.mesh.metrics import Peer, Reporter
from planes.mesh.relay import Pipe
from planes.mesh.route import Flag
from planes.mesh.view import ServiceView, WorkloadView
from planes.waypoint.destinations import Destination, find
from testbed.model.httppath import normalize
from testbed.model.l4policy import Connection
from testbed.model.l7policy import Judge

DIRECT_CLUSTER = "encap"
"""What Envoy calls the way to a workload that was called by its own address."""
_DIRECT = Decision(Kind.PASSTHROUGH, route="direct-http")
_DIRECT.retry = DEFAULT_RETRY
_MEMO_LIMIT = 4096
"""Ports of workloads come from clients; beyond this many the memory is begun anew."""
_FORGET_FROM = 64
"""Connections that have ended are forgotten when there are more of them than this and those that are open."""


class Inbound(HttpSide):
    reporter = "waypoint"

    def __init__(self, program: L7Program) -> None:
        super().__init__(program)
        self._tunnels = Tunnels(program, self._target, self._tunnelled)
        self._members = Members(program, speaks_mtls=False)
        self._pipes: set[Pipe] = set()
        self._downstreams: dict[Pipe, Downstream] = {}
        """Of the pipes, and of some that have ended."""
        self._destinations: dict[tuple[str, int], Destination] = {}

    async def listen(self, sock: socket.socket) -> None:
        await self._tunnels.listen(sock)

    def reloaded(self) -> None:
        """The next request of every connection meets the new policies, routes and endpoints, where Envoy lets it end
        under the old ones. What is not HTTP and no longer allowed ends after `policy_drain_s`.
        """
        self._members = Members(self.program, speaks_mtls=False)
        self._destinations.clear()
        for connection in self.connections:
            downstream: Downstream = connection.context  # type: ignore[assignment]
            downstream.upstreams.clear()
            downstream.labels.clear()
            downstream.judge = self._judge(downstream)
        self._downstreams = {pipe: d for pipe, d in self._downstreams.items() if pipe in self._pipes}
        for pipe, downstream in self._downstreams.items():
            if not self._may_pass(downstream):
                self.loop.call_later(self.program.settings.policy_drain_s, self._end_refused, pipe, downstream)

    def _end_refused(self, pipe: Pipe, downstream: Downstream) -> None:
        """Unless it has ended, or a still newer policy lets it pass."""
        if pipe in self._pipes and not self._may_pass(downstream):
            self._pipes.discard(pipe)
            pipe.drop()

    # -- tunnels -------------------------------------------------------------------------------------------------------

    def _target(self, host: str, port: int, is_address: bool) -> tuple[int, tuple[str, int]]:
        """Envoy would say 200 and then close; 404 says why."""
        return (200, (host, port)) if self._find(host, port, is_address=is_address) is not None else (404, ("", 0))

    def _find(self, host: str, port: int, *, is_address: bool) -> Destination | None:
        held = self._destinations.get((host, port))
        if held is None:
            program = self.program
            held = find(program.l7, program.mesh, program.local, host, port, is_address=is_address)
            if held is not None:
                if len(self._destinations) >= _MEMO_LIMIT:
                    self._destinations.clear()
                self._destinations[host, port] = held
        return held

    def _destination(self, downstream: Downstream) -> Destination | None:
        """None once a new view has taken it away."""
        host, port = downstream.destination
        return self._find(host, port, is_address=":" in host or host.replace(".", "").isdigit())

    def _tunnelled(self, downstream: Downstream) -> asyncio.Protocol:
        downstream.workload = self._source(downstream)
        destination = self._destination(downstream)
        protocol = destination.protocol if destination is not None else "tcp"
        if protocol == "tcp":
            return self._tcp(downstream)
        return Detecting(
            self.loop, lambda found, _: self._detected(found, downstream),
            limit_s=self.program.settings.detection_limit_s if not protocol else None,
        )  # fmt: skip

    def _detected(self, found: Detected, downstream: Downstream) -> asyncio.Protocol:
        """What is no HTTP where HTTP was declared meets the codec's refusal: as TCP it would pass by every policy."""
        destination = self._destination(downstream)
        if found not in (Detected.HTTP1, Detected.HTTP2):
            if destination is None or not destination.protocol:
                return self._tcp(downstream)
            found = Detected.HTTP1
        downstream.judge = self._judge(downstream)
        return self.serve(found, downstream)

    # -- what is not HTTP ----------------------------------------------------------------------------------------------

    def _tcp(self, downstream: Downstream) -> asyncio.Protocol:
        program, destination = self.program, self._destination(downstream)
        key = destination.service_key if destination is not None else None
        allowed = self._may_pass(downstream)
        way, workload, group = None, None, UNLIMITED
        if destination is not None:
            way, workload, group = self._tcp_way(destination, downstream)
        peers = self._peers(downstream, workload, program.mesh.service_by_key(key) if key is not None else None)
        if not allowed or way is None:
            flag = Flag.CONNECT if allowed else Flag.DENY
            program.tcp_metrics.fail(Reporter.WAYPOINT, *peers, mtls=True, flag=flag)
            way = None
        pipe = pipe_to(
            program, way, self._pipes, reporter=self.reporter, downstream=downstream, peers=peers, group=group
        )
        if way is None:
            self.loop.call_soon(self._refuse, pipe)
        else:
            self._downstreams[pipe] = downstream
            if len(self._downstreams) > 2 * len(self._pipes) + _FORGET_FROM:
                self._downstreams = {p: d for p, d in self._downstreams.items() if p in self._pipes}
        return pipe

    def _may_pass(self, downstream: Downstream) -> bool:
        destination = self._destination(downstream)
        key = destination.service_key if destination is not None else None
        return self.program.l7.policies(key).decide_tcp(self._facts(downstream)).allowed

    def _tcp_way(
        self, destination: Destination, downstream: Downstream
    ) -> tuple[Way | None, WorkloadView | None, Group]:
        workload, port = destination.workload, destination.port
        if workload is not None:
            return self._members.way(workload, port, None, http2=False, tcp=True), workload, UNLIMITED
        assert destination.service is not None
        cluster = self.program.table.connections(destination.service, port).choose(self.draw)
        picked = None
        if cluster is not None:
            picked = self._members.pick(cluster, self.draw, tcp=True, source_ip=downstream.source[0])
        return (picked.way, picked.workload, picked.upstream.group) if picked is not None else (None, None, UNLIMITED)

    def _refuse(self, pipe: Pipe) -> None:
        self._pipes.discard(pipe)
        discard(pipe)

    # -- facts ---------------------------------------------------------------------------------------------------------

    def _source(self, downstream: Downstream) -> WorkloadView | None:
        found = self.program.mesh.workload_at(self.program.local.network, downstream.source[0])
        return found if found is not None and str(found.identity) == downstream.identity else None

    def _facts(self, downstream: Downstream) -> Connection:
        """`destination.ip` is what the client called: the service's address, also where it called by name."""
        destination, (host, port) = self._destination(downstream), downstream.destination
        service = destination.service if destination is not None else None
        return downstream.policy_facts(service.address if service is not None else host, port)

    def _judge(self, downstream: Downstream) -> Judge:
        destination = self._destination(downstream)
        key = destination.service_key if destination is not None else None
        return self.program.l7.policies(key).judge(self._facts(downstream))

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
        destination = self._destinations.get((host, port)) or self._destination(downstream)
        if destination is not None and destination.workload is not None:
            return _DIRECT
        return program.table.decide(request, address=host, port=port, draw=program.draw)

    def choose(self, exchange: Exchange) -> Upstream | None:
        downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
        http2 = exchange.request.version == "2"
        if exchange.decision is _DIRECT:
            return self._direct(downstream, http2=http2 and not exchange.request.upgrade)
        cluster = exchange.decision.cluster
        if cluster is None:
            return None
        return self._members.choose(cluster, exchange, http2=http2, source_ip=downstream.source[0])

    def _direct(self, downstream: Downstream, *, http2: bool) -> Upstream | None:
        held, destination = downstream.upstreams.get(http2), self._destination(downstream)
        if held is None and destination is not None and destination.workload is not None:
            way = self._members.way(destination.workload, destination.port, None, http2=http2, tcp=False)
            held = downstream.upstreams[http2] = self.program.dialler.upstream(way, DIRECT_CLUSTER)
        return held

    def arrives_secured(self, downstream: Downstream) -> bool:
        """The tunnel is TLS, what is inside it is not: Envoy's inner listener says `http`."""
        return False

    def described(self, exchange: Exchange) -> tuple[Peer, Peer, ServiceView | None]:
        downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
        workload, service = self._members.named(exchange)
        destination = self._destination(downstream)
        if destination is not None:
            workload = destination.workload or workload
            key = destination.service_key
            service = service or (self.program.mesh.service_by_key(key) if key is not None else None)
        return self._peers(downstream, workload, service)

    def _peers(
        self, downstream: Downstream, workload: WorkloadView | None, service: ServiceView | None
    ) -> tuple[Peer, Peer, ServiceView | None]:
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
