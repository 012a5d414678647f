"""15006: who calls the workload. Mutual TLS of Istio's kind, or plaintext where PeerAuthentication lets it; policy;
then the application, from 127.0.0.6 so that it is not captured again (facts/hbone 4.1 to 4.3).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from planes.l7.accept import Acceptor, Detecting, first_bytes
from planes.l7.captured import pipe_to
from planes.l7.clienthello import NotTls, read_client_hello
from planes.l7.decision import Decision, Kind
from planes.l7.detect import Detected
from planes.l7.dial import Security, Way
from planes.l7.edit import certificate_entry
from planes.l7.exchange import Exchange
from planes.l7.halfclose import HalfClosingTls
from planes.l7.message import Request, field
from planes.l7.program import L7Program
from planes.l7.retry import RetryPolicy
from planes.l7.serve import Downstream, HttpSide, deny, proved
from planes.l7.tunnels import Tunnels
from planes.l7.upstream import Upstream
from planes.mesh import net, tls
from planes.mesh.metrics import Peer, Reporter
from planes.mesh.relay import Pipe
from planes.mesh.route import Flag
from planes.mesh.view import ServiceView, WorkloadView
from testbed.model.httppath import normalize
from testbed.model.l4policy import Connection
from testbed.model.l7policy import Judge
from testbed.model.policy import Mode

ALPN_HTTP = ("h2", "http/1.1")
ALPN_TCP = ("istio-peer-exchange", "h2", "http/1.1")
_ENDED_KEPT = 256
"""Connections that have ended are forgotten when there are this many more than live ones."""
_TO_THE_APPLICATION = Decision(Kind.PASSTHROUGH, route="default")
_TO_THE_APPLICATION.retry = RetryPolicy(conditions=frozenset({"refused-stream"}))
"""Only a request that the application surely never saw is sent again (Istio's reset-before-request)."""


class Inbound(HttpSide):
    reporter = "destination"

    def __init__(self, program: L7Program) -> None:
        super().__init__(program)
        self._acceptor: Acceptor | None = None
        self._tunnels: Tunnels | None = None
        self._pipes: set[Pipe] = set()
        self._downstreams: dict[Pipe, Downstream] = {}
        """Of the pipes, and of some that have ended."""

    def listen(self, sock: socket.socket) -> None:
        self._acceptor = Acceptor(self.loop, sock, lambda made: self.program.spawn(self._accepted(made)))

    async def listen_hbone(self, sock: socket.socket) -> None:
        self._tunnels = Tunnels(self.program, self._tunnel_target, self._tunnelled)
        await self._tunnels.listen(sock)

    def reloaded(self) -> None:
        """New policies judge the next request of every connection at once, where Istio lets a connection end under the
        old ones. What no longer may be there is drained: HTTP after its response, TCP after `policy_drain_s`.
        """
        for connection in list(self.connections):
            downstream: Downstream = connection.context  # type: ignore[assignment]
            downstream.judge = self._judge(downstream)
            downstream.labels.clear()
            if not self._may_stay(downstream):
                connection.codec.drain()
                connection.wake()
        self._downstreams = {pipe: d for pipe, d in self._downstreams.items() if pipe in self._pipes}
        for pipe, downstream in self._downstreams.items():
            if not self._may_pass(downstream):
                self.loop.call_later(self.program.settings.policy_drain_s, self._end_refused, pipe, downstream)

    def _may_stay(self, downstream: Downstream) -> bool:
        return downstream.mtls or self.program.l7.mode(downstream.destination[1]) is not Mode.STRICT

    def _may_pass(self, downstream: Downstream) -> bool:
        return self._may_stay(downstream) and self.program.l7.policies().decide_tcp(self._facts(downstream)).allowed

    def _end_refused(self, pipe: Pipe, downstream: Downstream) -> None:
        """Unless it has ended, or a still newer policy lets it pass."""
        if pipe in self._pipes and not self._may_pass(downstream):
            self._pipes.discard(pipe)
            pipe.drop()

    # -- connections ---------------------------------------------------------------------------------------------------

    async def _accepted(self, sock: socket.socket) -> None:
        program = self.program
        try:
            destination = program.settings.original_destination or net.destination_of(sock)
            port = destination[1]
            if port in program.settings.ports.own:
                sock.close()
                return
            mode = program.l7.mode(port)
            downstream = Downstream(source=sock.getpeername()[:2], destination=destination)
            if mode is Mode.DISABLE and program.l7.inbound_protocols.get(port) == "tcp":
                # Nothing to find out, so a server that speaks first is reached without waiting for its client.
                await net.adopt(self.loop, lambda: self._tcp(downstream), sock)
                return
            found, data = await first_bytes(self.loop, sock, limit_s=program.settings.detection_limit_s)
            hello = read_client_hello(data) if found is Detected.TLS else None
            downstream.server_name = (hello.server_name if hello is not None else "") or ""
            if hello is not None and any(name.startswith(b"istio") for name in hello.alpn) and mode is not Mode.DISABLE:
                http = self._is_http(port, any(name.startswith((b"istio-http", b"istio-h2")) for name in hello.alpn))
                context = program.contexts.server_for(ALPN_HTTP if http else ALPN_TCP)
                if http:
                    await net.adopt(
                        self.loop, lambda: _Secured(lambda made: self._secured(made, downstream, True)), sock, context
                    )
                else:
                    await net.adopt(
                        self.loop,
                        lambda: HalfClosingTls(
                            self.loop, context, lambda made: self._secured(made, downstream, False), server_side=True
                        ),
                        sock,
                    )
                return
            if mode is Mode.STRICT:
                program.tcp_metrics.fail(*self._tcp_peers(downstream), mtls=False, flag=Flag.TLS_FAILURE)
                sock.close()
                return
            await net.adopt(self.loop, lambda: self._plain(found, downstream), sock)
        except (OSError, ssl.SSLError, TimeoutError, NotTls):
            sock.close()

    def _is_http(self, port: int, offered: bool) -> bool:
        """The port's declared protocol; where none is, what the client's sidecar says by its ALPN."""
        return self._declared_http(port) or (offered and not self.program.l7.inbound_protocols.get(port))

    def _declared_http(self, port: int) -> bool:
        return self.program.l7.inbound_protocols.get(port) in ("http", "http2", "grpc")

    def _secured(self, transport: asyncio.Transport, downstream: Downstream, http: bool) -> asyncio.Protocol | None:
        """After the handshake: of our trust domain? (TLS itself asks for no more.)"""
        identity, digest = proved(transport)
        refusal = tls.server_refusal((identity,) if identity else (), tls.trust_domain(self.program.uri))
        if refusal is not None:
            self.program.warn(f"inbound {downstream.source[0]}: {refusal}")
            return None
        downstream.identity, downstream.certificate_hash, downstream.mtls = identity, digest, True
        if not http:
            return self._tcp(downstream)
        return Detecting(self.loop, lambda found, _: self._http_or_tcp(found, downstream))

    def _plain(self, found: Detected, downstream: Downstream) -> asyncio.Protocol:
        """Without Istio's TLS: HTTP, TCP, or the application's own TLS, which passes as it is."""
        if found is Detected.TLS or not self._is_http(downstream.destination[1], True):
            return self._tcp(downstream)
        return self._http_or_tcp(found, downstream)

    def _http_or_tcp(self, found: Detected, downstream: Downstream) -> asyncio.Protocol:
        """Other bytes at a port declared HTTP meet the HTTP codec's refusal: as TCP they would pass by its policies."""
        if found in (Detected.HTTP1, Detected.HTTP2):
            return self._http(found, downstream)
        if self._declared_http(downstream.destination[1]):
            return self._http(Detected.HTTP1, downstream)
        return self._tcp(downstream)

    def _http(self, found: Detected, downstream: Downstream) -> asyncio.Protocol:
        downstream.workload = self._source(downstream)
        downstream.judge = self._judge(downstream)
        return self.serve(found, downstream)

    def _tcp(self, downstream: Downstream) -> asyncio.Protocol:
        downstream.workload = self._source(downstream)
        verdict = self.program.l7.policies().decide_tcp(self._facts(downstream))
        way = self._application(downstream) if verdict.allowed else None
        _, *peers = self._tcp_peers(downstream)
        pipe = pipe_to(
            self.program, way, self._pipes, reporter="destination", downstream=downstream, peers=tuple(peers)
        )
        self._downstreams[pipe] = downstream
        if way is None:
            self.program.tcp_metrics.fail(*self._tcp_peers(downstream), mtls=downstream.mtls, flag=Flag.DENY)
            self.loop.call_soon(self._refuse, pipe)
        elif len(self._downstreams) > 2 * len(self._pipes) + _ENDED_KEPT:
            self._downstreams = {p: d for p, d in self._downstreams.items() if p in self._pipes or p is pipe}
        return pipe

    def _refuse(self, pipe: Pipe) -> None:
        self._pipes.discard(pipe)
        if pipe.transport is not None and not pipe.lost:
            pipe.transport.close()

    # -- tunnels -------------------------------------------------------------------------------------------------------

    def _tunnel_target(self, host: str, port: int, is_address: bool) -> tuple[int, tuple[str, int]]:
        """Its own address only, as a ztunnel would; not the proxy's own ports."""
        if not is_address or host not in self.program.local.addresses:
            return 400, ("", 0)
        return (503, ("", 0)) if port in self.program.settings.ports.own else (200, (host, port))

    def _tunnelled(self, downstream: Downstream) -> asyncio.Protocol:
        if self._is_http(downstream.destination[1], True):
            return Detecting(
                self.loop, lambda found, _: self._http_or_tcp(found, downstream),
                limit_s=self.program.settings.detection_limit_s,
            )  # fmt: skip
        return self._tcp(downstream)

    # -- facts ---------------------------------------------------------------------------------------------------------

    def _source(self, downstream: Downstream) -> WorkloadView | None:
        found = self.program.mesh.workload_at(self.program.local.network, downstream.source[0])
        matches = found is not None and (not downstream.identity or str(found.identity) == downstream.identity)
        return found if matches else None

    def _facts(self, downstream: Downstream) -> Connection:
        return downstream.policy_facts(self.program.local.addresses[0], downstream.destination[1])

    def _judge(self, downstream: Downstream) -> Judge:
        return self.program.l7.policies().judge(self._facts(downstream))

    def _tcp_peers(self, downstream: Downstream) -> tuple[Reporter, Peer, Peer, ServiceView | None]:
        return (Reporter.DESTINATION, *self._peers(downstream))

    def _peers(self, downstream: Downstream) -> tuple[Peer, Peer, ServiceView | None]:
        """Source, destination, and the service that the workload's port belongs to."""
        program, port = self.program, downstream.destination[1]
        served = (program.l7.services[key] for key in program.l7.config.serves)
        named = next((s.key for s in served if any(p.target_port == port for p in s.ports)), "")
        return (
            Peer(workload=downstream.workload, principal=downstream.identity or None),
            Peer(workload=program.local, principal=program.uri if downstream.mtls else None),
            program.mesh.service_by_key(named),
        )

    def _application(self, downstream: Downstream, *, http2: bool = False) -> Way:
        address = self.program.local.addresses[0], downstream.destination[1]
        return Way(security=Security.PLAIN, address=address, http2=http2, source=self.program.settings.source or "")

    # -- requests ------------------------------------------------------------------------------------------------------

    def decide(self, exchange: Exchange) -> Decision:
        downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
        request = exchange.request
        request.path = normalize(request.path, self.program.l7.config.path_normalization)
        judge = downstream.judge
        assert judge is not None
        verdict = judge.fixed or judge.decide(request)
        return _TO_THE_APPLICATION if verdict.allowed else deny(verdict.reason)

    def choose(self, exchange: Exchange) -> Upstream | None:
        downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
        http2 = exchange.request.version == "2" and self._speaks_http2(exchange.request, downstream.destination[1])
        held = downstream.upstreams.get(http2)
        if held is None:
            held = self.program.dialler.upstream(self._application(downstream, http2=http2))
            downstream.upstreams[http2] = held
        return held

    def _speaks_http2(self, request: Request, port: int) -> bool:
        """What came by HTTP/2 may have begun as HTTP/1 (h2UpgradePolicy): the port's declaration decides, as in Istio.

        Where it says `http`, gRPC still goes on as HTTP/2, which it cannot do without. Upgrades take a connection each.
        """
        if request.upgrade:
            return False
        if self.program.l7.inbound_protocols.get(port, "") != "http":
            return True
        return (field(request.fields, b"content-type") or b"").startswith(b"application/grpc")

    def client_certificate(self, downstream: Downstream) -> bytes | None:
        if not downstream.mtls:
            return None
        return certificate_entry(self.program.uri, downstream.certificate_hash, downstream.identity)

    def described(self, exchange: Exchange) -> tuple[Peer, Peer, ServiceView | None]:
        return self._peers(exchange.connection.context)  # type: ignore[arg-type]

    # -- ends ----------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Clients are told to go elsewhere; who still comes is served until the end, as in Istio's graceful drain."""
        if self._tunnels is not None:
            self._tunnels.drain()
        super().drain()

    def stop(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
        super().stop()
        if self._tunnels is not None:
            self._tunnels.stop()
        for pipe in list(self._pipes):
            pipe.drop()

    @property
    def busy(self) -> bool:
        return super().busy or bool(self._pipes) or (self._tunnels is not None and self._tunnels.busy)


class _Secured(asyncio.Protocol):
    """After the handshake, what serves the connection is chosen by who the peer proved to be."""

    def __init__(self, serve: Callable[[asyncio.Transport], asyncio.Protocol | None]) -> None:
        self._serve = serve

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        chosen = self._serve(transport)
        if chosen is None:
            transport.abort()  # type: ignore[attr-defined]
            return
        transport.set_protocol(chosen)  # type: ignore[attr-defined]
        chosen.connection_made(transport)
