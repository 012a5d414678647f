"""One HTTP connection: a codec driven over a transport, either role, whatever lies beneath (socket, TLS, a tunnel).

All that a codec puts out in one turn of the event loop leaves in one write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from planes.l7.codec import Codec

HIGH_WATER_BYTES = 256 << 10


class HttpConnection(asyncio.Protocol):
    """`codec` is set before bytes come: at once, or by `on_made` when the transport's TLS says which (ALPN)."""

    codec: Codec

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_made: Callable[[HttpConnection], None],
        on_turn: Callable[[HttpConnection], None] | None = None,
        on_lost: Callable[[HttpConnection], None] | None = None,
    ) -> None:
        self.loop = loop
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.lost = False
        self.context: object = None
        """What its owner knows of it: who the peer is, what policy says."""
        self._on_made, self._on_turn, self._on_lost = on_made, on_turn, on_lost
        self._scheduled = False
        self._reading_paused = False
        self._eof_written = False

    def __repr__(self) -> str:
        return f"<HttpConnection {getattr(self, 'codec', None)!r}>"

    def wake(self) -> None:
        """For the codec: something of it changed outside of `receive`."""
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self.flush)

    # -- transport -----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        codec = self.codec
        codec.receive(data)
        if codec.out or codec.closing or codec.reading_held is not self._reading_paused:
            self.wake()
        if self._on_turn is not None:
            self._on_turn(self)

    def eof_received(self) -> bool:
        self.codec.receive_eof()
        self.wake()
        if self._on_turn is not None:
            self._on_turn(self)
        return True

    def pause_writing(self) -> None:
        self.codec.set_write_blocked(True)

    def resume_writing(self) -> None:
        self.codec.set_write_blocked(False)

    def connection_lost(self, error: Exception | None) -> None:
        if self.lost:
            return
        self.lost = True
        if hasattr(self, "codec"):
            self.codec.lost(str(error) if error is not None else "connection closed")
        if self._on_lost is not None:
            self._on_lost(self)

    # -- output --------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        self._scheduled = False
        codec, transport = self.codec, self.transport
        if self.lost:
            codec.out.clear()
            return
        out = codec.out
        if out:
            transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()
        if codec.closing:
            if getattr(codec, "abort", False):
                transport.abort()
            else:
                transport.close()
        elif codec.reading_held is not self._reading_paused:
            self._reading_paused = codec.reading_held
            if self._reading_paused:
                transport.pause_reading()
            else:
                transport.resume_reading()
        if getattr(codec, "half_close", False) and not self._eof_written and not codec.closing:
            self._eof_written = True
            if transport.can_write_eof():
                transport.write_eof()

    def abort(self) -> None:
        if not self.lost:
            self.transport.abort()
