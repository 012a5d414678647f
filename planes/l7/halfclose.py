"""TLS whose two directions end on their own, for bytes that are not HTTP: a FIN becomes close_notify and the reverse.

The event loop's TLS transports close both directions at once, so that a client which shuts its side and waits for the
answer (`nc`, FTP data, many line protocols) would lose it; Envoy's let a connection be half open. Between the socket's
transport and a protocol such as `Pipe`, this is the one's protocol and the other's transport.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

from planes.mesh import net

_READ_BYTES = 256 << 10
HANDSHAKE_LIMIT_S = 10.0


async def connect(
    loop: asyncio.AbstractEventLoop,
    factory: net.ProtocolFactory,
    sock: socket.socket,
    destination: tuple[str, int],
    context: ssl.SSLContext,
    *,
    refusal_of: Callable[[asyncio.Transport], str | None],
    server_name: str | None,
    timeout_s: float = net.CONNECT_TIMEOUT_S,
) -> asyncio.BaseProtocol:
    """As `net.connect`; `refusal_of` judges the peer before it gets a byte: a refusal is a ConnectionError."""
    done: asyncio.Future[asyncio.BaseProtocol] = loop.create_future()

    def serve(transport: asyncio.Transport) -> asyncio.BaseProtocol | None:
        refusal = refusal_of(transport)
        if refusal is not None:
            done.set_exception(ConnectionError(f"tls: {refusal}"))
            return None
        return factory()

    async with asyncio.timeout(timeout_s):
        await net.connect(
            loop, lambda: HalfClosingTls(loop, context, serve, server_side=False, server_name=server_name, done=done),
            sock, destination, timeout_s=timeout_s,
        )  # fmt: skip
        return await done


class HalfClosingTls(asyncio.Transport, asyncio.Protocol):
    """`serve(transport)` gives the protocol after the handshake; None ends the connection without a byte."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: ssl.SSLContext,
        serve: Callable[[asyncio.Transport], asyncio.BaseProtocol | None],
        *,
        server_side: bool,
        server_name: str | None = None,
        done: asyncio.Future[asyncio.BaseProtocol] | None = None,
    ) -> None:
        super().__init__()
        self._loop = loop
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=server_side, server_hostname=server_name)
        self._serve = serve
        self._done = done
        """Of a client: the protocol, or why there is none."""
        self._protocol: asyncio.Protocol = None  # type: ignore[assignment]
        self._raw: asyncio.Transport = None  # type: ignore[assignment]
        self._paused = False
        self._eof_read = False
        self._eof_written = False
        self._closing = False
        self._timer: asyncio.TimerHandle | None = None

    # -- the socket's protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = transport  # type: ignore[assignment]
        self._timer = self._loop.call_later(HANDSHAKE_LIMIT_S, self._give_up, TimeoutError("TLS handshake"))
        self._shake()

    def data_received(self, data: bytes) -> None:
        self._in.write(data)
        if self._protocol is None:
            self._shake()
        else:
            self._read()

    def eof_received(self) -> bool:
        self._in.write_eof()
        if self._protocol is None:
            self._give_up(ConnectionResetError("the peer ended during the TLS handshake"))
        else:
            self._end_of_reading()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._closing = True
        if self._protocol is not None:
            self._protocol.connection_lost(error)
        elif self._done is not None and not self._done.done():
            self._done.set_exception(error or ConnectionResetError("connection lost in the TLS handshake"))

    def pause_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.resume_writing()

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as cause:
            self._flush()
            self._give_up(cause)
            return
        self._flush()
        assert self._timer is not None
        self._timer.cancel()
        protocol = self._serve(self)
        if protocol is None:
            self._give_up(ConnectionRefusedError("peer refused"))
            return
        self._protocol = protocol  # type: ignore[assignment]
        protocol.connection_made(self)
        if self._done is not None and not self._done.done():
            self._done.set_result(protocol)
        if self._in.pending and not self._paused:
            self._read()

    def _give_up(self, cause: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(cause)
        self._closing = True
        self._raw.close()

    def _read(self) -> None:
        if self._eof_read or self._paused or self._protocol is None:
            return
        try:
            while not self._paused:
                data = self._tls.read(_READ_BYTES)
                if not data:
                    self._end_of_reading()
                    return
                self._protocol.data_received(data)
        except ssl.SSLWantReadError:
            return
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._end_of_reading()
        except ssl.SSLError:
            self.abort()

    def _end_of_reading(self) -> None:
        """close_notify, or a FIN without one, which Envoy takes for an end, too."""
        if self._eof_read or (self._paused and self._in.pending):
            return
        self._eof_read = True
        if not self._protocol.eof_received():
            self.close()

    def _flush(self) -> None:
        if self._out.pending:
            self._raw.write(self._out.read())

    # -- the protocol's transport --------------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._tls if name == "ssl_object" else self._raw.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol  # type: ignore[assignment]

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        if not self._paused:
            self._paused = True
            if not self._closing:
                self._raw.pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            if not self._closing:
                self._raw.resume_reading()
            self._loop.call_soon(self._read)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and not self._eof_written and not self._closing:
            try:
                self._tls.write(data)
            except ssl.SSLError:
                self.abort()
                return
            self._flush()

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self._eof_written or self._closing:
            return
        self._eof_written = True
        unread = self._in.read()  # OpenSSL would look there for the peer's close_notify, and take data for an error
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # the peer's own close_notify is still to come; ours is written
        if unread:
            self._in.write(unread)
        self._flush()

    def close(self) -> None:
        if not self._closing:
            self.write_eof()
            self._closing = True
            self._raw.close()

    def abort(self) -> None:
        self._closing = True
        self._raw.abort()
