"""Bytes between a TCP connection and an HBONE stream (`Tunnel`), or another TCP connection (`Pipe`).

Each direction ends on its own: FIN becomes END_STREAM and the reverse, and half-open works for as long as it likes; a
TCP RST becomes an end, too (facts/hbone 1.8). A side that cannot take more stops the other side's reading; no queue
grows beyond one read.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

from planes.mesh import frames, net
from planes.mesh.bulk import BULK_FROM_BYTES, SMALL_BYTES, BulkReader
from planes.mesh.hbone import Stream
from planes.mesh.session import HboneSession


class Endpoint(asyncio.Protocol, ABC):
    """A TCP side. Until it is joined, it holds back what it reads: at most one or two reads, then the kernel waits."""

    def __init__(self, on_made: Callable[[Endpoint], None] | None = None) -> None:
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.bytes_read = 0
        self.bytes_written = 0
        self.write_blocked = False
        self.eof_read = False
        self.eof_written = False
        self.lost = False
        self.error: str | None = None
        self.on_done: Callable[[Endpoint], None] | None = None
        """Called once, when both directions have ended or the connection broke."""
        self._early: list[bytes] | None = []
        self._on_made = on_made
        self._read_blocked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.pause()
        if self._on_made is not None:
            self._on_made(self)

    def data_received(self, data: bytes) -> None:
        if self._early is not None:
            self._early.append(data)
            self._read_blocked = False
            self.pause()
            return
        self.bytes_read += len(data)
        self.forward(data)

    def eof_received(self) -> bool:
        self.eof_read = True
        if self._early is None:
            self.forward_end()
            self._close_when_done()
        return self.transport.can_write_eof()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if not self.eof_read:
            self.eof_read = True
            if self._early is None:
                self.forward_end()
        self.forward_loss()
        done, self.on_done = self.on_done, None
        if done is not None:
            done(self)

    def pause_writing(self) -> None:
        self.write_blocked = True

    def resume_writing(self) -> None:
        self.write_blocked = False

    def start(self) -> None:
        """Joined: what came early goes first, then reading starts."""
        early, self._early = self._early, None
        for data in early or ():
            self.bytes_read += len(data)
            self.forward(data)
        if self.eof_read:
            self.forward_end()
            self._close_when_done()
        elif not self.lost:
            self.resume_if_possible()

    def pause(self) -> None:
        if not self._read_blocked and not self.lost:
            self._read_blocked = True
            self.transport.pause_reading()

    def resume_if_possible(self) -> None:
        if self._read_blocked and not self.lost and self.may_read():
            self._read_blocked = False
            net.resume_reading(asyncio.get_running_loop(), self.transport)

    def finish_writing(self) -> None:
        """The other side has ended: FIN, after all that is queued."""
        if self.eof_written or self.lost:
            return
        self.eof_written = True
        if not self.eof_read:
            if not self.transport.can_write_eof():  # TLS: its libraries know no end of one direction alone
                if self._read_blocked:  # whose shutdown wants to read the peer's answer to it
                    self._read_blocked = False
                    self.transport.resume_reading()
                self.transport.close()
                return
            try:
                self.transport.write_eof()
            except OSError:
                pass
        self._close_when_done()

    def _close_when_done(self) -> None:
        if self.eof_read and self.eof_written and not self.lost:
            self.transport.close()

    def drop(self) -> None:
        if not self.lost and self.transport is not None:
            self.transport.abort()

    def may_read(self) -> bool:
        return True

    @abstractmethod
    def forward(self, data: bytes) -> None: ...

    @abstractmethod
    def forward_end(self) -> None: ...

    def forward_loss(self) -> None: ...


class Tunnel(Endpoint):
    """A TCP connection joined to an HBONE stream; it is the stream's sink."""

    def __init__(self, on_made: Callable[[Endpoint], None] | None = None) -> None:
        super().__init__(on_made)
        self.session: HboneSession = None  # type: ignore[assignment]
        self.stream: Stream = None  # type: ignore[assignment]
        self.stream_over = False
        self.stream_reset_early: Callable[[int], object] | None = None
        """Set while the stream is not answered yet: hears of its reset instead of the TCP side."""
        self._held = 0
        """Bytes given to a full transport, whose window is not yet given back."""
        self._unsent: list[bytes | memoryview] = []
        self._bulk: BulkReader | None = None

    def join(self, session: HboneSession, stream: Stream) -> None:
        self.session = session
        self.stream = stream
        stream.sink = self

    def data_received(self, data: bytes) -> None:
        # The hot path, one call deep: from TCP into the session's output of this turn.
        if self._early is not None:
            super().data_received(data)
            return
        size = len(data)
        self.bytes_read += size
        if self.stream_over:
            self.transport.close()
            return
        session = self.session
        if not session.connection.send(self.stream, data) or session.write_blocked:
            self.pause()
        if not session.flush_scheduled:
            session.schedule()
        if size >= BULK_FROM_BYTES and net.WRITES_COPY:
            self._bulk = self._bulk or BulkReader(self)
            self._read_as(self._bulk)

    def bulk_received(self, framed: memoryview) -> None:
        """`bulk.Busy`: as `data_received`, from the buffer that all tunnels share."""
        payload = framed[frames.HEADER_SIZE :]
        if self.stream_over or not self.session.write_through(self.stream, framed):
            self.data_received(bytes(payload))
        else:
            self.bytes_read += len(payload)
            if self.session.write_blocked:
                self.pause()
        if len(payload) < SMALL_BYTES:
            self._read_as(self)

    def _read_as(self, protocol: asyncio.BaseProtocol) -> None:
        if self.lost or self.transport.is_closing() or self.transport.get_protocol() is protocol:
            return
        self.transport.set_protocol(protocol)
        if not self._read_blocked:  # the loop takes the new way of reading only when it starts to read
            self.transport.pause_reading()
            self.transport.resume_reading()

    def forward(self, data: bytes) -> None:
        if not self.stream_over:
            if not self.session.connection.send(self.stream, data):
                self.pause()
            self.session.schedule()

    def forward_end(self) -> None:
        if not self.stream_over and self.stream is not None:
            self.session.connection.end(self.stream)
            self.session.schedule()
            self._check_over()

    def forward_loss(self) -> None:
        if self.stream is not None:
            self.release_held()
        if self.stream is not None and not self.stream_over:
            self.stream_over = True
            self.session.connection.reset(self.stream, frames.CANCEL)
            self.session.schedule()
            self.session.stream_done()

    def may_read(self) -> bool:
        return self.stream_over or not (self.stream.pending or self.session.write_blocked)

    # -- the stream's sink -----------------------------------------------------------------------------------------

    def received(self, data: bytes | memoryview) -> bool:
        size = len(data)
        self.bytes_written += size
        if self.transport is None:  # inbound, upstream not connected yet: an eager client may send before the 200
            self._unsent.append(data)
            self._held += size
            return False
        self.transport.write(data)
        if self.write_blocked:
            self._held += size
            return False
        return True

    def resume_writing(self) -> None:
        self.write_blocked = False
        self.release_held()

    def release_held(self) -> None:
        """Also when the bytes go nowhere: the connection's window is shared, what one tunnel kept all would miss."""
        held, self._held = self._held, 0
        if held and not self.session.closed:
            self.session.connection.release(self.stream, held)
            if self.session.connection.out:
                self.session.schedule()

    def start(self) -> None:
        if self._unsent:
            for data in self._unsent:
                self.transport.write(data)
            self._unsent.clear()
            if not self.write_blocked:
                self.resume_writing()
        super().start()
        if self.stream.received_end:
            self.finish_writing()

    def ended(self) -> None:
        if self.transport is not None:
            self.finish_writing()
        self._check_over()

    def was_reset(self, code: int) -> None:
        self.stream_over = True
        if self.stream_reset_early is not None:
            self.stream_reset_early(code)
            return
        if code not in (frames.NO_ERROR, frames.CANCEL):
            self.error = self.error or f"stream reset by peer: {frames.error_name(code)}"
        if self.transport is None:
            return
        # NO_ERROR and CANCEL are a clean end of the peer's direction only. Ours breaks when TCP next has something for
        # it: nobody reads it any more (facts/hbone 1.8).
        self.finish_writing()
        if not self.lost:
            if self.error is not None:
                self.transport.close()
            else:
                self.resume_if_possible()
        self.session.stream_done()

    def writable(self) -> None:
        self.resume_if_possible()

    def _check_over(self) -> None:
        if self.stream.sent_end and self.stream.received_end:
            self.stream_over = True
            self.session.stream_done()


class Pipe(Endpoint):
    """A TCP connection joined to another: `join(a, b)`."""

    def __init__(self, on_made: Callable[[Endpoint], None] | None = None) -> None:
        super().__init__(on_made)
        self.other: Pipe = None  # type: ignore[assignment]

    def forward(self, data: bytes) -> None:
        other = self.other
        other.bytes_written += len(data)
        other.transport.write(data)
        if other.write_blocked:
            self.pause()

    def forward_end(self) -> None:
        if self.other is not None:
            self.other.finish_writing()

    def forward_loss(self) -> None:
        if self.other is not None and not self.other.lost:
            self.other.transport.close()

    def resume_writing(self) -> None:
        self.write_blocked = False
        if self.other is not None:
            self.other.resume_if_possible()

    def may_read(self) -> bool:
        return not self.other.write_blocked


def join(downstream: Pipe, upstream: Pipe) -> None:
    downstream.other, upstream.other = upstream, downstream
    downstream.start()
    upstream.start()
