"""HTTP at one side of a proxy: a downstream connection with what is known of its peer, and the answers to an exchange's
questions that all roles share: endpoints, edits, metrics, log.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from planes.l7 import crash, edit, telemetry
from planes.l7.codec import ServerStream
from planes.l7.connection import HttpConnection
from planes.l7.decision import Decision, Kind
from planes.l7.detect import Detected
from planes.l7.exchange import Exchange
from planes.l7.group import IDLE_LIMIT_S
from planes.l7.http1 import Http1Server
from planes.l7.http2 import Http2Server
from planes.l7.members import Members
from planes.l7.message import Request, Response, field
from planes.l7.program import IDLE_GRACE_S, Ended, L7Program
from planes.l7.upstream import Upstream
from planes.l7.view import Cluster
from planes.mesh import tls
from planes.mesh.metrics import Peer
from planes.mesh.view import ServiceView, WorkloadView
from testbed.model.identity import Identity
from testbed.model.l4policy import Connection
from testbed.model.l7policy import Judge


@dataclass(slots=True, eq=False)
class Downstream:
    """A connection's facts, worked out once."""

    source: tuple[str, int]
    destination: tuple[str, int]
    """As the client meant it: SO_ORIGINAL_DST, or a CONNECT's authority."""
    identity: str = ""
    """The SPIFFE URI that was proved; empty without mTLS."""
    mtls: bool = False
    server_name: str = ""
    """As its ClientHello has it, for policies that ask for `connection.sni`."""
    workload: WorkloadView | None = None
    judge: Judge | None = None
    certificate_hash: str = ""
    proved: tuple[bool, bytes | None] | None = None
    """What requests are stamped with: whether the connection was TLS, the entry for x-forwarded-client-cert."""
    labels: dict[object, telemetry.Labels] = dataclasses.field(default_factory=dict)
    """By upstream (of gRPC: and True), so that the next request of this connection need not work them out."""
    upstreams: dict[bool, Upstream] = dataclasses.field(default_factory=dict)
    """Where only one place is asked (the own application): that, by whether it is spoken to in HTTP/2."""

    def policy_facts(self, local_address: str, port: int) -> Connection:
        try:
            proved = Identity.parse(self.identity) if self.identity else None
        except ValueError:
            proved = None
        return Connection(
            source_ip=self.source[0], destination_ip=local_address, destination_port=port, identity=proved,
            sni=self.server_name,
        )  # fmt: skip


class HttpSide(Ended, ABC):
    """A `Place` of exchanges; subclasses decide."""

    reporter = "source"
    scheme = b"http"

    def __init__(self, program: L7Program) -> None:
        self.program = program
        self.loop: asyncio.AbstractEventLoop = program.loop
        self.connections: set[HttpConnection] = set()
        self._members: Members | None = None
        """Of a side that balances: which endpoints there are."""
        self._done: list[Exchange] = []
        self.exchange: Callable[[HttpConnection, ServerStream, Request], Exchange] = partial(Exchange, self)
        """For every request; a partial, since a method in between costs as much as reading a field."""
        if program.settings.crash_header:
            self.exchange = partial(crash.exchange, program.settings.crash_header.lower().encode(), self)

    # -- connections ---------------------------------------------------------------------------------------------------

    def serve(self, detected: Detected, downstream: Downstream) -> HttpConnection:
        """A protocol for a transport that speaks HTTP; its codec is ready before its first byte."""

        def made(connection: HttpConnection) -> None:
            connection.context = downstream
            self.connections.add(connection)
            if detected is Detected.HTTP2:
                connection.codec = Http2Server(partial(self.exchange, connection), connection.wake)
                connection.wake()
            else:
                connection.codec = Http1Server(partial(self.exchange, connection), connection.wake, scheme=self.scheme)
            if self.program.draining:
                _last_call(connection)

        return HttpConnection(self.loop, on_made=made, on_lost=self.connections.discard)

    # -- what an exchange asks -----------------------------------------------------------------------------------------

    @abstractmethod
    def decide(self, exchange: Exchange) -> Decision: ...

    @abstractmethod
    def choose(self, exchange: Exchange) -> Upstream | None: ...

    @abstractmethod
    def described(self, exchange: Exchange) -> tuple[Peer, Peer, ServiceView | None]:
        """Source, destination and service, for metrics."""

    def draw(self) -> float:
        return self.program.draw()

    def mirror(self, exchange: Exchange, cluster: Cluster) -> Upstream | None:
        members = self._members
        http2 = exchange.request.version == "2"
        return members.choose(cluster, exchange, http2=http2) if members is not None else None

    def arrives_secured(self, downstream: Downstream) -> bool:
        """Whether the connection that carries the requests is TLS itself: what x-forwarded-proto tells."""
        return downstream.mtls

    def client_certificate(self, downstream: Downstream) -> bytes | None:
        """An entry for x-forwarded-client-cert; None: the field is not this side's to pass on."""
        return None

    def outgoing(self, exchange: Exchange) -> Request:
        request, decision = exchange.request, exchange.decision
        downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
        if not exchange.stamped:
            # By the first that connects, which need not be the first attempt: what a client wrote of itself is taken
            # off here. Later ones share request id and span.
            exchange.stamped = True
            proved = downstream.proved
            if proved is None:
                proved = downstream.proved = (self.arrives_secured(downstream), self.client_certificate(downstream))
            request.fields = edit.stamp(
                request.fields, secure=proved[0], random_bits=self.program.random_bits, client_cert=proved[1]
            )
        fields = edit.with_attempt(request.fields, exchange.attempts, exchange.expected_s)  # a list of our own
        for change in decision.request_edits:
            fields = change.apply(fields)
        return request.edited(decision.authority or request.authority, decision.path or request.path, fields)

    def incoming(self, exchange: Exchange, response: Response) -> Response:
        edits = exchange.decision.response_edits
        if not edits:
            return response
        fields = response.fields
        for change in edits:
            fields = change.apply(fields)
        return Response(
            response.status, fields, version=response.version, has_body=response.has_body,
            content_length=response.content_length, upgrade=response.upgrade,
        )  # fmt: skip

    def finished(self, exchange: Exchange) -> None:
        # Counted after the turn in which the last bytes go out, as Envoy does: it is the next request that pays.
        if not self._done:
            self.loop.call_soon(self._account)
        self._done.append(exchange)

    def _account(self) -> None:
        done, self._done = self._done, []
        now_s = self.loop.time()
        for exchange in done:
            downstream: Downstream = exchange.connection.context  # type: ignore[assignment]
            key = (exchange.upstream, True) if exchange.grpc_status else exchange.upstream
            held = downstream.labels.get(key)
            if held is None:
                held = downstream.labels[key] = self._labels(exchange, downstream)
            duration_ms = (now_s - exchange.started_s) * 1000
            self.program.http_metrics.add(
                held, exchange.status, exchange.flag, exchange.grpc_status, duration_ms=duration_ms,
                request_bytes=exchange.request_bytes, response_bytes=exchange.response_bytes,
            )  # fmt: skip
            if self.program.log is not None:
                self._write(exchange, downstream, duration_ms)

    def _labels(self, exchange: Exchange, downstream: Downstream) -> telemetry.Labels:
        source, destination, service = self.described(exchange)
        return telemetry.Labels(
            reporter=self.reporter, source=source, destination=destination, service=service,
            protocol="grpc" if exchange.grpc_status else "http", mtls=downstream.mtls,
        )  # fmt: skip

    def _write(self, exchange: Exchange, downstream: Downstream, duration_ms: float) -> None:
        request, decision = exchange.request, exchange.decision
        assert self.program.log is not None
        way = exchange.upstream.key if exchange.upstream is not None else None
        line = telemetry.log_line(
            time_s=time.time(), method=request.method, path=request.path, protocol=request.version,
            status=exchange.status, flag=exchange.flag, request_bytes=exchange.request_bytes,
            response_bytes=exchange.response_bytes, duration_ms=duration_ms, downstream=downstream.source[0],
            upstream=getattr(way, "authority", "") or "-", cluster=decision.cluster.name if decision.cluster else "",
            authority=request.authority, request_id=field(request.fields, b"x-request-id") or b"-",
            peer=downstream.identity, reason=exchange.reason, route=decision.route,
        )  # fmt: skip
        self.program.log.write(line + "\n")

    # -- ends ----------------------------------------------------------------------------------------------------------

    def sweep(self, now_s: float) -> None:
        for connection in list(self.connections):
            if connection.idle_s(now_s) >= IDLE_LIMIT_S:
                connection.codec.drain()
                connection.wake()

    def drain(self) -> None:
        """The answers under way, or the next ones, say that they are the last: closing could cross a request."""
        for connection in list(self.connections):
            _last_call(connection)

    def press(self) -> None:
        now_s = self.loop.time()
        for connection in list(self.connections):
            _last_call(connection)
            if connection.idle_s(now_s) >= IDLE_GRACE_S:
                connection.codec.drain()
                connection.wake()

    def stop(self) -> None:
        for connection in list(self.connections):
            connection.abort()

    @property
    def busy(self) -> bool:
        return bool(self.connections)


def _last_call(connection: HttpConnection) -> None:
    codec = connection.codec
    if isinstance(codec, Http1Server):
        codec.last_call()
    else:
        codec.drain()
        connection.wake()


def deny(verdict_reason: str) -> Decision:
    """Envoy's RBAC refusal."""
    return Decision(
        Kind.RESPOND, status=403, body=b"RBAC: access denied", fields=[(b"content-type", b"text/plain")],
        route=verdict_reason,
    )  # fmt: skip


def proved(transport: asyncio.BaseTransport) -> tuple[str, str]:
    """(SPIFFE URI, SHA-256 of the certificate) of a TLS transport's peer."""
    secured = transport.get_extra_info("ssl_object")
    if secured is None:
        return "", ""
    uris = tls.spiffe_uris(secured.getpeercert())
    der = secured.getpeercert(True)
    return next((uri for uri in uris if tls.trust_domain(uri)), ""), hashlib.sha256(der).hexdigest() if der else ""
