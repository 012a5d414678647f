"""The bytes inside a CONNECT tunnel as an asyncio transport, so that a codec's shell cannot tell it from a socket.

The tunnel's window is the back-pressure: what arrives while reading is paused stays charged against it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from planes.mesh import frames
from planes.mesh.hbone import Stream
from planes.mesh.session import HboneSession


class StreamTransport(asyncio.Transport):
    """Also the stream's sink. `extra` answers `get_extra_info`, such as the peer's identity."""

    def __init__(self, session: HboneSession, stream: Stream, extra: dict[str, Any] | None = None) -> None:
        super().__init__(extra or {})
        self.session = session
        self.stream = stream
        self._protocol: asyncio.Protocol = None  # type: ignore[assignment]
        self._reading_paused = True
        self._writing_paused = False
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._ended = False
        self._closing = False
        self._over = False
        stream.sink = self

    def __repr__(self) -> str:
        return f"<StreamTransport {self.stream!r} of {self.session!r}>"

    def attach(self, protocol: asyncio.Protocol) -> None:
        """From now on `protocol` gets what comes; what came already comes first."""
        self._protocol = protocol
        protocol.connection_made(self)
        self.resume_reading()
        if self._over:  # reset before anybody listened
            protocol.connection_lost(ConnectionResetError("tunnel reset"))

    # -- what the protocol calls ---------------------------------------------------------------------------------------

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol  # type: ignore[assignment]

    def is_closing(self) -> bool:
        return self._closing or self._over

    def is_reading(self) -> bool:
        return not self._reading_paused

    def can_write_eof(self) -> bool:
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The stream's window is the limit."""

    def get_write_buffer_size(self) -> int:
        return self.stream.pending_bytes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        session = self.session
        if self._over or self.stream.sent_end or self.stream.pending_end:
            return
        full = not session.connection.send(self.stream, data) or session.write_blocked  # type: ignore[arg-type]
        if full and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()
        session.schedule()

    def writelines(self, parts: Any) -> None:
        """A frame each: for pieces that are too long to be copied into one."""
        for part in parts:
            self.write(part)

    def write_eof(self) -> None:
        if not self._over:
            self.session.connection.end(self.stream)
            self.session.schedule()
            self._check_over()

    def close(self) -> None:
        """All that was written still goes; nothing more is read."""
        if self._closing:
            return
        self._closing = True
        if not self._over:
            connection = self.session.connection
            connection.end(self.stream)
            if not self.stream.received_end and not self.stream.pending:
                connection.reset(self.stream, frames.NO_ERROR)
            self._drop_kept()
            self.session.schedule()
        self._lost(None)

    def abort(self) -> None:
        if not self._over:
            self._drop_kept()
            self._over = True
            self.session.connection.reset(self.stream, frames.CANCEL)
            self.session.schedule()
            self.session.stream_done()
        self._closing = True
        self._lost(None)

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        if not self._reading_paused or self._protocol is None:
            return
        self._reading_paused = False
        while self._kept and not self._reading_paused:
            data = self._kept.pop(0)
            self._kept_bytes -= len(data)
            self._release(len(data))
            self._protocol.data_received(data)
        if self._ended and not self._kept and not self._reading_paused:
            self._tell_end()

    # -- the stream's sink ---------------------------------------------------------------------------------------------

    def received(self, data: bytes | memoryview) -> bool:
        if self._closing:
            return True
        whole = data if data.__class__ is bytes else bytes(data)
        if self._reading_paused:
            self._kept.append(whole)  # type: ignore[arg-type]
            self._kept_bytes += len(whole)
            return False
        self._protocol.data_received(whole)  # type: ignore[arg-type]
        return True

    def ended(self) -> None:
        self._ended = True
        if not self._kept and not self._reading_paused:
            self._tell_end()
        self._check_over()

    def was_reset(self, code: int) -> None:
        if self._over:
            return
        self._over = True
        self.session.stream_done()
        if self._protocol is not None:
            clean = code in (frames.NO_ERROR, frames.CANCEL)
            if clean and not self._ended and not self._closing:
                self._ended = True
                self._tell_end()
            self._lost(None if clean else ConnectionResetError(f"tunnel reset: {frames.error_name(code)}"))

    def writable(self) -> None:
        if self._writing_paused and not self.session.write_blocked:
            self._writing_paused = False
            self._protocol.resume_writing()
        self._check_over()

    def pause(self) -> None:
        """The session's transport is full: all its tunnels pause."""
        if not self._writing_paused and self._protocol is not None:
            self._writing_paused = True
            self._protocol.pause_writing()

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _tell_end(self) -> None:
        if not self._closing and not self._protocol.eof_received():
            self.close()

    def _check_over(self) -> None:
        if self.stream.sent_end and self.stream.received_end and not self._over:
            self._over = True
            self.session.stream_done()

    def _drop_kept(self) -> None:
        if self._kept_bytes:
            self._release(self._kept_bytes)
            self._kept.clear()
            self._kept_bytes = 0

    def _release(self, size: int) -> None:
        if not self._over and not self.session.closed:
            self.session.connection.release(self.stream, size)
            self.session.schedule()

    def _lost(self, error: Exception | None) -> None:
        protocol = self._protocol
        if protocol is None:
            return
        self._closing = True
        self._protocol = _NOBODY
        self.session.loop.call_soon(protocol.connection_lost, error)


class _Nobody(asyncio.Protocol):
    """After the end."""

    def eof_received(self) -> bool:
        return True


_NOBODY = _Nobody()
