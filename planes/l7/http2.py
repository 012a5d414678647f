"""The HTTP/2 codec: `Http2Server` and `Http2Client`, which turn bytes into requests and responses and back.

Reading order: `hpack_tables`, `hpack` (header compression) -> `http2_head` (heads, and what makes them malformed) ->
`http2_stream` -> `http2_connection` (what both roles share) -> here. Source: RFC 9113, RFC 7541, RFC 8441.
What is done of them is listed in docs/http-conformance.md.
"""

from __future__ import annotations

from collections.abc import Callable

from planes.l7 import codec
from planes.l7.hpack_tables import Field
from planes.l7.http2_connection import KNOWN_BLOCK_BYTES, L7Connection
from planes.l7.http2_head import Malformed, listed_request, request_of, response_of
from planes.l7.http2_stream import L7ClientStream, L7ServerStream
from planes.l7.message import Request, Response
from planes.mesh import frames
from planes.mesh.hbone_stream import Breach, Event, Limits
from testbed.errors import Bug

SERVER_LIMITS = Limits(
    stream_window_bytes=256 << 10, connection_window_bytes=4 << 20, max_frame_bytes=256 << 10,
    max_concurrent_streams=256, max_header_list_bytes=64 << 10, extended_connect=True,
)  # fmt: skip
"""What a proxy may have to keep is the streams' windows: 64 MiB from a peer that uses them all against a stalled
upstream, and what busy streams are given beyond (`http2_connection.GROWN_TOTAL_BYTES`). DATA is handed on as it comes,
so a long frame needs no room of its own. Envoy's default header limit is 60 KiB (`max_request_headers_kb`), ours the
next round number."""
CLIENT_LIMITS = Limits(
    stream_window_bytes=256 << 10, connection_window_bytes=4 << 20, max_frame_bytes=256 << 10,
    max_header_list_bytes=64 << 10,
)  # fmt: skip
STREAMS_BEFORE_SETTINGS = 100
"""Opened before the peer has said its limit; RFC 9113 6.5.2 asks servers not to set a lower one."""


class Http2Server(L7Connection):
    __slots__ = ("_take",)

    def __init__(
        self,
        on_request: Callable[[L7ServerStream, Request], None],
        wake: Callable[[], None],
        *,
        limits: Limits = SERVER_LIMITS,
    ) -> None:
        super().__init__(client=False, limits=limits, wake=wake)
        self._take = on_request

    def _on_block(self, number: int, block: bytes, events: list[Event]) -> None:
        known = self._decoder.known.get(block) if len(block) <= KNOWN_BLOCK_BYTES else None
        if known is None:
            listed = self._read(block)
        else:
            listed, self._fault = known, None  # type: ignore[assignment]
        if number <= self._last_peer_stream:
            stream = self.streams.get(number)
            if stream is not None:
                self._on_trailers(stream, listed)
            elif number not in self._forgotten:
                raise Breach(frames.STREAM_CLOSED, f"HEADERS on closed stream {number}")
            return
        if number % 2 == 0:
            raise Breach(frames.PROTOCOL_ERROR, f"request on even stream {number}")
        self._last_peer_stream = number
        limit = self.limits.max_concurrent_streams
        if (self._refuse_above is not None and number > self._refuse_above) or (
            limit is not None and len(self.streams) >= limit
        ):
            self._remember(number)
            self.out.append(frames.rst_stream(number, frames.REFUSED_STREAM))
            return
        if listed is None:
            self._answer_431(number)
            return
        try:
            if self._fault is not None:
                raise self._fault
            request = request_of(listed, ended=self._block_ends)
            self._keep_known(block, listed)
        except Malformed:
            self._fail_stream(number, frames.PROTOCOL_ERROR, events)
            return
        stream = L7ServerStream(self, number, request)
        self.streams[number] = stream
        self._take(stream, request)

    def _answer_431(self, number: int) -> None:
        block = self.encode([(b":status", b"431"), (b"content-length", b"0")])
        self.out.append(frames.headers(number, block, end=True, max_frame_size=self.peer_max_frame))
        self._remember(number)
        self._count_early_reset()
        if not self._block_ends:
            self.out.append(frames.rst_stream(number, frames.NO_ERROR))


class Http2Client(L7Connection):
    __slots__ = ("extended_connect",)

    def __init__(self, wake: Callable[[], None], *, limits: Limits = CLIENT_LIMITS) -> None:
        super().__init__(client=True, limits=limits, wake=wake)
        self.extended_connect = False
        """Whether the peer takes requests with `upgrade`; known once `settings_received`."""

    @property
    def usable(self) -> bool:
        if self.failed or self.goaway_received or self.goaway_sent or self._next_stream >= frames.MAX_STREAM_ID:
            return False
        limit = self.peer_max_streams
        if limit is None:
            limit = frames.MAX_STREAM_ID if self.settings_received else STREAMS_BEFORE_SETTINGS
        return len(self.streams) < limit

    def open(self, request: Request, sink: codec.ResponseSink) -> L7ClientStream:  # type: ignore[override]
        if not self.usable or (request.upgrade and not self.extended_connect):
            raise Bug(f"open({request!r}) on {self!r}")
        stream = L7ClientStream(self, self._next_stream, request, sink)
        self._next_stream += 2
        self.streams[stream.id] = stream
        if not self.out:
            self.stir()
        self.write_head(stream, self.encode(listed_request(request)), end=not (request.has_body or stream.tunnel))
        return stream

    def _on_setting(self, key: int, value: int) -> None:
        super()._on_setting(key, value)
        if key == frames.ENABLE_CONNECT_PROTOCOL:
            if value > 1 or value < self.extended_connect:
                raise Breach(frames.PROTOCOL_ERROR, f"ENABLE_CONNECT_PROTOCOL of {value}")
            self.extended_connect = bool(value)

    def _on_block(self, number: int, block: bytes, events: list[Event]) -> None:
        stream = self.streams.get(number)
        known = self._decoder.known.get(block) if len(block) <= KNOWN_BLOCK_BYTES else None
        if known is not None and stream is not None and not stream.answered and not stream.tunnel:
            status, fields, length = known  # type: ignore[misc]
            response = Response(status, fields, "2", not self._block_ends, length)
            try:
                self._fit(stream, response, ended=self._block_ends)
            except Malformed as malformed:
                self.refuse(stream, str(malformed))
            else:
                self._answer(stream, response)
            return
        listed = self._read(block)
        if stream is None:
            if self._is_idle(number):
                raise Breach(frames.PROTOCOL_ERROR, f"HEADERS on idle stream {number}")
            return
        if stream.answered or stream.received_end:
            self._on_trailers(stream, listed)
            return
        ended = self._block_ends
        try:
            if listed is None:
                raise Malformed("header list is longer than allowed")
            if self._fault is not None:
                raise self._fault
            response = response_of(listed, ended=ended)
            self._keep_known(block, (response.status, response.fields, response.content_length))
            self._fit(stream, response, ended=ended)
        except Malformed as malformed:
            self.refuse(stream, str(malformed))
            return
        self._answer(stream, response)

    def _answer(self, stream: L7ClientStream, response: Response) -> None:
        if response.status < 200 and response.status != 101:
            stream.sink.interim(response)
            return
        stream.answered = True
        if response.status >= 300:
            stream.tunnel = False
        if self._block_ends:
            stream.received_end = True
            self._maybe_done(stream)
        else:
            stream.takes_data = True
            stream.expected = 0 if stream.silent else response.content_length
        stream.sink.head(response)

    def _fit(self, stream: L7ClientStream, response: Response, *, ended: bool) -> None:
        """What the head means as the answer to this request."""
        status = response.status
        if status < 200:
            if ended or status == 101:
                raise Malformed(f"{status} with the end of the stream, or for an upgrade")
            response.has_body = False
        elif stream.tunnel and status < 300:
            self._answer_of_connect(stream, response)
        elif stream.bodiless or status == 204 or status == 304:
            stream.silent = not ended
            response.has_body = False
        elif ended and response.content_length:
            raise Malformed("content-length without content")

    def _answer_of_connect(self, stream: L7ClientStream, response: Response) -> None:
        """2xx opens the tunnel: an announced length says nothing (RFC 9110 9.3.6), an upgrade is spelled 101 again."""
        response.content_length = None
        response.fields = [field for field in response.fields if field[0] != b"content-length"]
        if stream.upgrade:
            response.status = 101
            response.upgrade = stream.upgrade

    def _tell_end(self, stream: L7ClientStream, trailers: list[Field]) -> None:  # type: ignore[override]
        if not stream.silent:
            stream.sink.ended(trailers)
