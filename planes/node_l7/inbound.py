"""15008: tunnels of other nodes' proxies. Whose call is inside they only say; policy is asked with what they say.

A proxy is believed about the workloads of its own node and no others, which is as far as its identity goes: who has a
node's key is every workload of that node, to everybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from planes.l7.accept import Detecting
from planes.l7.captured import discard, pipe_to
from planes.l7.decision import Decision, Kind
from planes.l7.detect import Detected
from planes.l7.dial import Security, Way
from planes.l7.exchange import Exchange
from planes.l7.program import L7Program
from planes.l7.retry import RetryPolicy
from planes.l7.serve import Downstream, HttpSide, deny
from planes.l7.tunnels import Tunnels
from planes.l7.upstream import Upstream
from planes.mesh.hbone import RequestReceived
from planes.mesh.metrics import Peer, Reporter
from planes.mesh.relay import Pipe
from planes.mesh.route import Flag
from planes.mesh.session import HboneSession
from planes.mesh.tls import trust_domain
from planes.mesh.view import MeshView, ServiceView, WorkloadView
from planes.node_l7.members import node_proxies
from testbed.model.httppath import normalize
from testbed.model.l4policy import Connection
from testbed.model.l7policy import Judge

SOURCE_FIELD = b"meshbed-source"
"""`namespace/name` of the calling workload, in a CONNECT: the word of the proxy that sends it."""
_TO_THE_APPLICATION = Decision(Kind.PASSTHROUGH, route="default")
_TO_THE_APPLICATION.retry = RetryPolicy(conditions=frozenset({"refused-stream"}))


def told_source(mesh: MeshView, peer: str, field: str) -> WorkloadView | None:
    """The workload that `peer` may speak for: on the node whose proxy it proved to be. None: nobody it may name."""
    namespace, _, name = field.partition("/")
    source = mesh.local(namespace, name)
    proxy = node_proxies(mesh).get(source.node) if source is not None else None
    return source if proxy is not None and str(proxy.identity) == peer else None


class NodeTunnels(Tunnels):
    """Tunnels with the workload that is told of them. Asked and served within one turn, so one is remembered."""

    def __init__(
        self, program: L7Program, has: Callable[[str], bool],
        serve: Callable[[Downstream, WorkloadView], asyncio.Protocol],
    ) -> None:  # fmt: skip
        super().__init__(program, self._asked, self._tunnelled)
        self._has, self._serve_told = has, serve
        self._source: WorkloadView | None = None

    def _requested(self, held: HboneSession, event: RequestReceived) -> None:
        peer = next((uri for uri in held.peer_uris if trust_domain(uri)), "")
        told = [value for name, value in event.fields if name == SOURCE_FIELD]
        field = told[0].decode("latin-1") if len(told) == 1 else ""
        self._source = told_source(self._program.mesh, peer, field)
        super()._requested(held, event)

    def _asked(self, host: str, port: int, is_address: bool) -> tuple[int, tuple[str, int]]:
        if self._source is None:
            return 401, ("", 0)
        return (200, (host, port)) if is_address and self._has(host) else (404, ("", 0))

    def _tunnelled(self, downstream: Downstream) -> asyncio.Protocol:
        assert self._source is not None
        return self._serve_told(downstream, self._source)


class Inbound(HttpSide):
    """Of one workload."""

    reporter = "destination"

    def __init__(self, program: L7Program) -> None:
        super().__init__(program)
        self._pipes: dict[Pipe, Downstream] = {}
        self._relaying: set[Pipe] = set()

    def reloaded(self) -> None:
        """New policies judge the next request; TCP that they refuse ends after `policy_drain_s`."""
        for connection in self.connections:
            downstream: Downstream = connection.context  # type: ignore[assignment]
            downstream.judge = self._judge(downstream)
            downstream.labels.clear()
        self._forget_ended()
        for pipe, downstream in self._pipes.items():
            if not self._may_pass(downstream):
                self.loop.call_later(self.program.settings.policy_drain_s, self._end_refused, pipe, downstream)

    def _end_refused(self, pipe: Pipe, downstream: Downstream) -> None:
        if pipe in self._relaying and not self._may_pass(downstream):
            self._relaying.discard(pipe)
            pipe.drop()

    def _forget_ended(self) -> None:
        self._pipes = {pipe: downstream for pipe, downstream in self._pipes.items() if pipe in self._relaying}

    # -- connections ---------------------------------------------------------------------------------------------------

    def serve_tunnelled(self, downstream: Downstream, source: WorkloadView) -> asyncio.Protocol:
        downstream.workload = source
        declared = self.program.l7.inbound_protocols.get(downstream.destination[1])
        if declared == "tcp":
            return self._tcp(downstream)
        return Detecting(
            self.loop,
            lambda found, _: self._detected(found, downstream, is_declared=bool(declared)),
            limit_s=None if declared else self.program.settings.detection_limit_s,
        )

    def _detected(self, found: Detected, downstream: Downstream, *, is_declared: bool) -> asyncio.Protocol:
        """Other bytes at a port declared HTTP meet the HTTP codec's refusal: as TCP they would pass by its policies."""
        if found not in (Detected.HTTP1, Detected.HTTP2):
            if not is_declared:
                return self._tcp(downstream)
            found = Detected.HTTP1
        downstream.judge = self._judge(downstream)
        return self.serve(found, downstream)

    def _tcp(self, downstream: Downstream) -> asyncio.Protocol:
        way = self._application(downstream) if self._may_pass(downstream) else None
        peers = self._peers(downstream)
        pipe = pipe_to(
            self.program, way, self._relaying, reporter=self.reporter, downstream=downstream, peers=peers
        )
        if way is None:
            self.program.tcp_metrics.fail(Reporter.DESTINATION, *peers, mtls=True, flag=Flag.DENY)
            self.loop.call_soon(self._refuse, pipe)
        else:
            self._forget_ended()
            self._pipes[pipe] = downstream
        return pipe

    def _refuse(self, pipe: Pipe) -> None:
        self._relaying.discard(pipe)
        discard(pipe)

    # -- facts ---------------------------------------------------------------------------------------------------------

    def _facts(self, downstream: Downstream) -> Connection:
        source = downstream.workload
        assert source is not None
        return Connection(
            source_ip=source.addresses[0], destination_ip=self.program.local.addresses[0],
            destination_port=downstream.destination[1], identity=source.identity,
        )  # fmt: skip

    def _judge(self, downstream: Downstream) -> Judge:
        return self.program.l7.policies().judge(self._facts(downstream))

    def _may_pass(self, downstream: Downstream) -> bool:
        return self.program.l7.policies().decide_tcp(self._facts(downstream)).allowed

    def _application(self, downstream: Downstream, *, http2: bool = False) -> Way:
        address = self.program.local.addresses[0], downstream.destination[1]
        return Way(security=Security.PLAIN, address=address, http2=http2)

    def _peers(self, downstream: Downstream) -> tuple[Peer, Peer, ServiceView | None]:
        program, port = self.program, downstream.destination[1]
        served = (program.l7.services[key] for key in program.l7.config.serves)
        named = next((s.key for s in served if any(p.target_port == port for p in s.ports)), "")
        return (
            Peer(workload=downstream.workload, principal=downstream.identity or None),
            Peer(workload=program.local, principal=program.uri),
            program.mesh.service_by_key(named),
        )

    # -- requests ------------------------------------------------------------------------------------------------------

    def decide(self, exchange: Exchange) -> Decision:
        downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
        request, judge = exchange.request, downstream.judge
        request.path = normalize(request.path, self.program.l7.config.path_normalization)
        assert judge is not None
        verdict = judge.fixed or judge.decide(request)
        return _TO_THE_APPLICATION if verdict.allowed else deny(verdict.reason)

    def choose(self, exchange: Exchange) -> Upstream | None:
        downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
        http2 = exchange.request.version == "2" and not exchange.request.upgrade
        held = downstream.upstreams.get(http2)
        if held is None:
            held = self.program.dialler.upstream(self._application(downstream, http2=http2))
            downstream.upstreams[http2] = held
        return held

    def described(self, exchange: Exchange) -> tuple[Peer, Peer, ServiceView | None]:
        return self._peers(exchange.connection.context)  # type: ignore[arg-type]

    # -- ends ----------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        super().stop()
        for pipe in list(self._relaying):
            pipe.drop()

    @property
    def busy(self) -> bool:
        return super().busy or bool(self._relaying)
