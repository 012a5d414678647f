"""One HTTP connection: a codec driven over a transport, either role, whatever lies beneath (socket, TLS, a tunnel).

All that a codec puts out in one turn of the event loop leaves in one write, at the turn's end (`mesh.turn`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from planes.l7.codec import Codec
from planes.mesh import net, turn

HIGH_WATER_BYTES = 512 << 10
LARGE_BYTES = 16 << 10
"""Pieces of a body from here on are counted (`large`): gathering many saves nothing, and only a write tells whether the
peer takes more (an event loop may read megabytes from one socket in a turn)."""
PROBE_EVERY_S = 15
LOOK_EVERY_S = 0.5
"""At clients that have ended their side before their answer."""
_TCP_CLOSE = 7
WRITE_FROM_BYTES = 128 << 10
"""So much of them is written within the turn, and not copied into one."""
LINGER_S = 1.0
"""How long a server that has said its last word reads on: closing at once would turn unread bytes of the client into a
RST, which may destroy the answer on its way (RFC 9112 9.6). Envoy's delayed_close_timeout."""


class HttpConnection(asyncio.Protocol):
    """`codec` is set before bytes come: at once, or by `on_made` when the transport's TLS says which (ALPN)."""

    __slots__ = (
        "_eof_written", "_large_bytes", "_linger", "_on_lost", "_on_made", "_on_turn", "_reading_paused", "_scheduled",
        "_turn", "codec", "context", "loop", "lost", "reads", "secured", "seen", "served", "transport",
    )  # fmt: skip

    codec: Codec
    transport: asyncio.Transport

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_made: Callable[[HttpConnection], None],
        on_turn: Callable[[HttpConnection], None] | None = None,
        on_lost: Callable[[HttpConnection], None] | None = None,
    ) -> None:
        self.loop = loop
        self.codec = None  # type: ignore[assignment]
        self.transport = None  # type: ignore[assignment]
        self.lost = False
        self.secured = False
        """Right above TLS."""
        self.context: object = None
        """What its owner knows of it: who the peer is, what policy says."""
        self.served = 0
        """Requests begun on it; its owner counts."""
        self.reads = 0
        self.seen: tuple[int, float] = (-1, 0.0)
        """(reads, when) at the last look for idleness."""
        self._on_made, self._on_turn, self._on_lost = on_made, on_turn, on_lost
        self._turn = turn.of(loop)
        self._scheduled = False
        self._reading_paused = False
        self._eof_written = False
        self._large_bytes = 0
        self._linger: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<HttpConnection {self.codec!r}>"

    def wake(self) -> None:
        """For the codec: something of it changed outside of `receive`."""
        if not self._scheduled:
            self._scheduled = True
            self._turn.add(self)

    # -- transport -----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self.secured = transport.get_extra_info("ssl_object") is not None
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        codec = self.codec
        self.reads += 1
        codec.receive(data)
        if codec.reading_held is not self._reading_paused:
            self._hold(codec.reading_held)  # at once: the event loop may have more reads in store for this very turn
        if not self._scheduled and (codec.out or codec.closing):
            self._scheduled = True
            self._turn.add(self)
        if self._on_turn is not None:
            self._on_turn(self)

    def eof_received(self) -> bool:
        if self._linger is not None:
            self.transport.close()
            return False
        self.codec.receive_eof()
        if self.codec.active and not self.secured:
            self._watch_for_the_end()
        self.wake()
        if self._on_turn is not None:
            self._on_turn(self)
        return not self.secured  # a TLS transport closes with its peer whatever one says

    def _watch_for_the_end(self) -> None:
        """A client that has closed looks like one that has only shut its side, until what is sent to it is refused:
        bytes of the answer, or probes once its kernel has forgotten it (tcp_fin_timeout). Event loops do not watch a
        socket any more whose end they have read."""
        held = self.transport.get_extra_info("socket")
        if held is None:
            return  # a tunnel's stream, whose own end tells
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=os.dup(held.fileno()))  # an event loop's wrapper sets no options
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_EVERY_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY_S)
            self.loop.call_later(LOOK_EVERY_S, self._look_for_the_end, sock)

    def _look_for_the_end(self, sock: socket.socket) -> None:
        if not self.lost and self.codec.active:
            if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_CLOSE:
                self.loop.call_later(LOOK_EVERY_S, self._look_for_the_end, sock)
                return
            self.abort()
        sock.close()

    def pause_writing(self) -> None:
        self.codec.set_write_blocked(True)

    def resume_writing(self) -> None:
        self.codec.set_write_blocked(False)

    def connection_lost(self, error: Exception | None) -> None:
        if self.lost:
            return
        self.lost = True
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self.codec is not None:
            self.codec.lost(str(error) if error is not None else "connection closed")
        if self._on_lost is not None:
            self._on_lost(self)

    # -- output --------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        self._scheduled = False
        codec = self.codec
        out = codec.out
        if self.lost:
            out.clear()
            return
        if out:
            if len(out) == 1:
                self.transport.write(out[0])
            elif self._large_bytes >= WRITE_FROM_BYTES:
                self.transport.writelines(out)
            else:
                self.transport.write(b"".join(out))
            self._large_bytes = 0
            out.clear()
        if codec.closing:
            self._close()
        elif codec.reading_held is not self._reading_paused:
            self._hold(codec.reading_held)
        elif codec.half_close and not self._eof_written:
            self._write_eof()

    def large(self, size: int) -> None:
        """A piece of at least `LARGE_BYTES` has been put into the codec."""
        self._large_bytes += size
        if self._large_bytes >= WRITE_FROM_BYTES:
            self.flush()

    def _hold(self, held: bool) -> None:
        self._reading_paused = held
        if held:
            self.transport.pause_reading()
        else:
            net.resume_reading(self.loop, self.transport)

    def _write_eof(self) -> None:
        self._eof_written = True
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _close(self) -> None:
        codec, transport = self.codec, self.transport
        if self._linger is not None:
            return
        if codec.abort:
            transport.abort()
        elif codec.unread and not transport.is_closing():
            self._linger = self.loop.call_later(LINGER_S, transport.close)
            if not self._eof_written:
                self._write_eof()
            if self._reading_paused:
                self._hold(False)
        else:
            transport.close()

    def complain(self, error: Exception) -> None:
        self.loop.call_exception_handler({"message": f"BUG: {self!r}", "exception": error})
        self.abort()

    def abort(self) -> None:
        if not self.lost and self.transport is not None:
            self.transport.abort()

    def idle_s(self, now_s: float) -> float:
        """For how long nothing has come, as seen by those who ask now and then; 0 with an exchange under way."""
        if self.codec.active or self.reads != self.seen[0]:
            self.seen = (self.reads, now_s)
        return now_s - self.seen[1]
