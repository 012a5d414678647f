"""An HBONE connection on a TLS transport: the thin shell around `hbone.HboneConnection`, either role.

Output of one turn of the event loop, of all streams together, leaves in one write: that is what makes sixteen busy
tunnels cost little more than one. When the transport's buffer is full, every tunnel of the session stops reading.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from planes.mesh import frames, keepalive, tls, turn
from planes.mesh.hbone import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoawayReceived,
    HboneConnection,
    PingAnswered,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    Stream,
    StreamEnded,
    StreamReset,
)

_DRAIN_PING = b"draining"
_HIGH_WATER_BYTES = 1 << 20
REFLEX_LIMIT = 10_000
"""Requests and pieces of output that a peer may cause while it takes none of our bytes (CVE-2019-9512, -9515)."""
_LONG_BYTES = 32 << 10
"""Output that ends in a piece like this is a body's: it is not copied into one before it is encrypted."""


class HboneSession(asyncio.Protocol):
    """`refusal_of(uris)` says why a peer is turned away, or None; asked right after the handshake."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        client: bool,
        refusal_of: Callable[[tuple[str, ...]], str | None],
        on_request: Callable[[HboneSession, RequestReceived], None] | None = None,
        on_ready: Callable[[HboneSession], None] | None = None,
        on_closed: Callable[[HboneSession], None] | None = None,
        revoked: Callable[[bytes], str | None] | None = None,
    ) -> None:
        """`revoked` is asked the same of a peer's certificate, in DER, where certificates may be taken back."""
        self.loop = loop
        self.connection = HboneConnection(client=client)
        self.transport: asyncio.Transport | None = None
        self.peer_uris: tuple[str, ...] = ()
        self.peer_certificate = b""
        """Kept where it may be taken back."""
        self.peer_address: tuple[str, int] = ("", 0)
        self.local_address: tuple[str, int] = ("", 0)
        self.refusal: str | None = None
        self.write_blocked = False
        self._reflexes = 0
        self.answers: dict[int, Callable[[int, list[tuple[bytes, bytes]]], None]] = {}
        """Who waits for the response of a stream (client role)."""
        self.settings_seen: asyncio.Future[None] = loop.create_future()
        self.closed = False
        self.retired = False
        """No new tunnels; closes with its last one."""
        self._refusal_of = refusal_of
        self._revoked = revoked
        self._on_request = on_request
        self._on_ready = on_ready
        self._on_closed = on_closed
        self.flush_scheduled = False
        self._turn = turn.of(loop)
        self._timer: asyncio.TimerHandle | None = None
        self._ping_sent_s: float | None = None

    def __repr__(self) -> str:
        return f"<HboneSession {self.peer_address[0]}:{self.peer_address[1]} {self.connection!r}>"

    @property
    def usable(self) -> bool:
        return not self.closed and not self.retired and self.connection.can_open

    @property
    def active_streams(self) -> int:
        return len(self.connection.streams)

    @property
    def stream_limit(self) -> int | None:
        return self.connection.peer_max_streams

    # -- transport -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]
        self.peer_address = (transport.get_extra_info("peername") or ("", 0))[:2]
        self.local_address = (transport.get_extra_info("sockname") or ("", 0))[:2]
        secured = transport.get_extra_info("ssl_object")
        if secured is None or secured.selected_alpn_protocol() != "h2":
            self.refusal = "peer did not negotiate h2"
        else:
            self.peer_uris = tls.spiffe_uris(secured.getpeercert())
            self.refusal = self._refusal_of(self.peer_uris)
            if self.refusal is None and self._revoked is not None:
                self.peer_certificate = secured.getpeercert(True) or b""
                self.refusal = self._revoked(self.peer_certificate)
        if self.refusal is not None:
            transport.abort()  # type: ignore[attr-defined]
            return
        transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)  # type: ignore[attr-defined]
        self._timer = self.loop.call_later(keepalive.PING_EVERY_S, self._keep_alive)
        self.flush()
        if self._on_ready is not None:
            self._on_ready(self)

    def data_received(self, data: bytes) -> None:
        connection = self.connection
        if self.write_blocked:
            before = len(connection.out)
            events = connection.receive(data)
            self._reflexes += len(connection.out) - before + len(events)
            if self._reflexes > REFLEX_LIMIT:
                self.cut("peer asks for answers and takes none")
                return
        else:
            events = connection.receive(data)
        if events:
            for event in events:
                self._handle(event)
        if connection.out and not self.flush_scheduled:
            self.flush_scheduled = True
            self._turn.add(self)

    def pause_writing(self) -> None:
        self.write_blocked = True
        for stream in self.connection.streams.values():
            if stream.sink is not None:
                stream.sink.pause()  # type: ignore[attr-defined]

    def resume_writing(self) -> None:
        self.write_blocked = False
        self._reflexes = 0
        for stream in list(self.connection.streams.values()):
            if stream.sink is not None and not stream.pending:
                stream.sink.writable()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if not self.settings_seen.done():
            self.settings_seen.set_exception(ConnectionError(self.refusal or "peer closed before its SETTINGS"))
            self.settings_seen.exception()  # seen here, so that nobody has to wait for it
        for stream in list(self.connection.streams.values()):
            self._drop(stream, frames.INTERNAL_ERROR)
        self.connection.streams.clear()
        if self._on_closed is not None:
            self._on_closed(self)

    # -- output ----------------------------------------------------------------------------------------------------

    def schedule(self) -> None:
        """Write what is queued at the end of this turn of the loop."""
        if not self.flush_scheduled:
            self.flush_scheduled = True
            self._turn.add(self)

    def flush(self) -> None:
        self.flush_scheduled = False
        out = self.connection.out
        if out and self.transport is not None and not self.closed:
            if len(out[-1]) >= _LONG_BYTES:
                self.transport.writelines(out)
            else:
                self.transport.write(b"".join(out))
        out.clear()

    def complain(self, error: Exception) -> None:
        self.loop.call_exception_handler({"message": f"BUG: {self!r}", "exception": error})
        self.abort()

    def write_through(self, stream: Stream, framed: memoryview) -> bool:
        """`framed`: room for a frame header, then payload. It leaves at once; False: it does not fit, use `send`."""
        head = self.connection.head(stream, len(framed) - frames.HEADER_SIZE)
        if head is None or self.transport is None:
            return False
        framed[: frames.HEADER_SIZE] = head
        self.flush()
        self.transport.write(framed)
        return True

    def retire(self) -> None:
        """No new tunnels from now on; closes when the last one ends."""
        self.retired = True
        self.stream_done()

    def drain(self) -> None:
        """A client's tunnels move elsewhere: GOAWAY for all, and once it must have seen that, for what came after."""
        self.connection.goaway(graceful=True)
        self.connection.ping(_DRAIN_PING)
        self.schedule()

    def _refuse_new(self) -> None:
        self.connection.goaway()
        self.schedule()
        self.retire()

    def stream_done(self) -> None:
        if (self.retired or self.connection.goaway_received) and not self.connection.streams:
            self.close()

    def close(self) -> None:
        if self.closed or self.transport is None:
            return
        self.connection.goaway()
        self.flush()
        self.transport.close()

    def cut(self, reason: str) -> None:
        """Ends at once with all its tunnels, which tell `reason`."""
        for stream in self.connection.streams.values():
            if stream.sink is not None:
                stream.sink.error = reason  # type: ignore[attr-defined]
        self.abort()

    def abort(self) -> None:
        if self.transport is not None and not self.closed:
            self.transport.abort()

    # -- events ----------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        match event:
            case RequestReceived(stream=stream):
                # What was reset in the same read never began: else a flood of such costs a task and a connection each.
                if stream.id in self.connection.streams:
                    assert self._on_request is not None
                    self._on_request(self, event)
            case ResponseReceived(stream=stream, status=status, fields=fields):
                answer = self.answers.pop(stream.id, None)
                if answer is not None:
                    answer(status, fields)
            case DataReceived(stream=stream, data=data):  # behind the request in one read: its sink came only now
                if stream.sink is None or stream.sink.received(data):
                    self.connection.release(stream, len(data))
            case StreamEnded(stream=stream) if stream.sink is not None:
                stream.sink.ended()
            case StreamReset(stream=stream, code=code) if stream.sink is not None:
                stream.sink.was_reset(code)
            case SettingsReceived():
                if not self.settings_seen.done():
                    self.settings_seen.set_result(None)
            case PingAnswered(payload=payload):
                if payload == _DRAIN_PING:
                    self._refuse_new()
                else:
                    self._ping_sent_s = None
            case GoawayReceived():
                self.stream_done()
            case ConnectionFailed():
                self.flush()
                if self.write_blocked:
                    self.abort()  # a peer that takes nothing would keep what waits for it
                elif self.transport is not None:
                    self.transport.close()

    def _drop(self, stream: Stream, code: int) -> None:
        answer = self.answers.pop(stream.id, None)
        if answer is not None:
            answer(0, [])
        if stream.sink is not None:
            stream.sink.was_reset(code)

    def _keep_alive(self) -> None:
        now = self.loop.time()
        step = keepalive.step(now, self._ping_sent_s)
        if step is keepalive.Step.DROP:
            if not self.connection.client:
                self.connection.goaway()
                self.flush()
            self.abort()
            return
        if step is keepalive.Step.PING:
            self._ping_sent_s = now
            self.connection.ping(b"meshbed.")
            self.flush()
        self._timer = self.loop.call_later(keepalive.PING_EVERY_S, self._keep_alive)
