"""How an L7 proxy reaches an upstream: in the clear, by Istio's mutual TLS, or through a tunnel (HBONE).

A `Way` is a value; the dialler keeps one `Upstream` per way, which keeps the connections.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from weakref import WeakValueDictionary

from planes.l7 import halfclose
from planes.l7.connection import HttpConnection
from planes.l7.group import CONNECT_LIMIT_S, UNLIMITED, Group
from planes.l7.http1 import Http1Client
from planes.l7.http2 import Http2Client
from planes.l7.stream_transport import StreamTransport
from planes.l7.upstream import Upstream
from planes.mesh import ask, net, tls
from planes.mesh.pool import Pool, PoolKey
from planes.mesh.session import HboneSession
from testbed.model.traffic import TrafficPolicy

ALPN_HTTP1 = ("istio-http/1.1", "istio", "http/1.1")
ALPN_HTTP2 = ("istio-h2", "istio", "h2")
ALPN_TCP = ("istio",)
"""Istio's own TCP list begins with istio-peer-exchange, a framed protobuf that only Envoy's filter speaks (4.2)."""


class Security(StrEnum):
    PLAIN = "plain"
    MTLS = "mtls"
    HBONE = "hbone"
    REFUSED = "refused"
    """TLS that is not spoken here (a DestinationRule's SIMPLE, MUTUAL): plain bytes must not go instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One endpoint, one security, one protocol."""

    security: Security
    address: tuple[str, int]
    """Of the application (PLAIN), or of what captures it (MTLS); for HBONE what the tunnel is asked for."""
    http2: bool = False
    tcp: bool = False
    """Bytes that are not HTTP: said to a sidecar by ALPN."""
    expected: frozenset[str] = frozenset()
    """SPIFFE URIs, one of which the peer must prove."""
    server_name: str = ""
    source: str = ""
    """PLAIN: the address to call from; how an inbound connection to the own application escapes capture."""
    tunnel: tuple[str, int] = ("", 0)
    """HBONE: what is dialled."""

    @property
    def authority(self) -> str:
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Dialler:
    """Under one identity, from one namespace."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        contexts: tls.IdentityContexts,
        *,
        baggage: Callable[[], str],
        fields: bytes = b"",
        mark: int | None = None,
    ) -> None:
        """`fields`: more of a CONNECT's, encoded; `mark`: on every socket."""
        self.loop = loop
        self.contexts = contexts
        self._baggage, self._fields, self._mark = baggage, fields, mark
        self._upstreams: WeakValueDictionary[tuple[str, Way], Upstream] = WeakValueDictionary()
        """Kept alive by who may choose them, and by their connections."""
        self._groups: dict[str, tuple[TrafficPolicy, Group]] = {}
        self._tunnels = Pool()
        self.sessions: set[HboneSession] = set()

    def group(self, name: str, policy: TrafficPolicy) -> Group:
        """What the cluster of that name shares; its counts go on as long as its policy stays the same."""
        held = self._groups.get(name)
        if held is None or held[0] != policy:
            held = self._groups[name] = (policy, Group(policy))
        return held[1]

    def upstream(self, way: Way, cluster: str = "", group: Group = UNLIMITED) -> Upstream:
        """Clusters do not share connections, as in Envoy: each has its own limits."""
        held = self._upstreams.get((cluster, way))
        if held is None:
            held = self._upstreams[cluster, way] = Upstream(
                self.loop, way, lambda upstream: self._connect(way, upstream), multiplexed=way.http2
            )
        held.group = group
        return held

    async def _connect(self, way: Way, upstream: Upstream) -> HttpConnection:
        connection = HttpConnection(
            self.loop, on_made=lambda made: self._made(way, made), on_turn=upstream.turned, on_lost=upstream.lost
        )
        await self.open(way, lambda: connection, limit_s=upstream.group.connect_limit_s)
        return connection

    def _made(self, way: Way, connection: HttpConnection) -> None:
        if way.http2:
            connection.codec = Http2Client(connection.wake)
            connection.wake()
        else:
            connection.codec = Http1Client(connection.wake)

    async def open(
        self, way: Way, factory: net.ProtocolFactory, *, limit_s: float = CONNECT_LIMIT_S
    ) -> asyncio.BaseProtocol:
        """Any protocol at the end of `way`. Raises OSError (ConnectionError, ssl.SSLError), TimeoutError."""
        if way.security is Security.HBONE:
            return await self._through(way, factory, limit_s)
        if way.security is Security.REFUSED:
            raise ConnectionError("tls: the destination rule asks for SIMPLE or MUTUAL, which is not spoken here")
        sock = net.upstream(way.address, mark=self._mark)
        if way.security is Security.PLAIN:
            if way.source:
                sock.bind((way.source, 0))
            return await net.connect(self.loop, factory, sock, way.address, timeout_s=limit_s)
        alpn = ALPN_TCP if way.tcp else ALPN_HTTP2 if way.http2 else ALPN_HTTP1
        context = self.contexts.client_for(alpn)
        if way.tcp:
            return await halfclose.connect(
                self.loop, factory, sock, way.address, context, server_name=way.server_name or None,
                refusal_of=lambda made: _refusal_of(made, way), timeout_s=limit_s,
            )  # fmt: skip
        protocol = await net.connect(
            self.loop, factory, sock, way.address, context, server_name=way.server_name or None, timeout_s=limit_s
        )
        refusal = _refusal(protocol, way)
        if refusal is not None:
            raise ConnectionError(f"tls: {refusal}")
        return protocol

    # -- tunnels -------------------------------------------------------------------------------------------------------

    async def _through(self, way: Way, factory: net.ProtocolFactory, limit_s: float) -> asyncio.BaseProtocol:
        key = PoolKey(
            source_identity=self.contexts.uri, expected=way.expected, destination=way.tunnel, source_ip=""
        )
        session = await self._tunnels.checkout(key, lambda: self._open_session(way), self.loop.time)
        stream, answer = ask.ask(session, ask.block(way.authority, self._baggage()) + self._fields)
        transport = StreamTransport(session, stream, {"peername": way.tunnel, "peer_uris": session.peer_uris})
        try:
            async with asyncio.timeout(limit_s):
                status = await answer
        except BaseException:
            transport.abort()
            raise
        if status != 200:
            transport.abort()
            raise ConnectionRefusedError(f"CONNECT {way.authority} by {way.tunnel[0]}: status {status or 'none'}")
        protocol = factory()
        transport.attach(protocol)  # type: ignore[arg-type]
        return protocol

    async def _open_session(self, way: Way) -> HboneSession:
        return await ask.open_session(
            self.loop, net.upstream(way.tunnel, mark=self._mark), way.tunnel, self.contexts.client,
            expected=way.expected, sessions=self.sessions,
        )  # fmt: skip

    # -- housekeeping --------------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Ends what is idle for too long."""
        now_s = self.loop.time()
        self._tunnels.expire(now_s)
        for upstream in list(self._upstreams.values()):
            upstream.end_idle(now_s)

    def drain(self) -> None:
        for upstream in list(self._upstreams.values()):
            upstream.close()
        self._tunnels.clear()

    def stop(self) -> None:
        for upstream in list(self._upstreams.values()):
            upstream.abort()
        for session in list(self.sessions):
            session.abort()


def _refusal(protocol: asyncio.BaseProtocol, way: Way) -> str | None:
    """Why the peer is turned away, before a byte is written to it."""
    transport: asyncio.Transport = protocol.transport  # type: ignore[attr-defined]
    refusal = _refusal_of(transport, way)
    if refusal is not None:
        transport.abort()
    return refusal


def _refusal_of(transport: asyncio.Transport, way: Way) -> str | None:
    secured: ssl.SSLObject = transport.get_extra_info("ssl_object")
    refusal = tls.client_refusal(tls.spiffe_uris(secured.getpeercert()), way.expected)
    if refusal is None and way.http2 and secured.selected_alpn_protocol() not in ("h2", *ALPN_HTTP2):
        refusal = f"server chose {secured.selected_alpn_protocol() or 'no protocol'} of {', '.join(ALPN_HTTP2)}"
    return refusal
