"""Reading a busy TCP side in large pieces, each written on as one DATA frame from where the kernel put it.

A busy sender's bytes were copied five times on their way to the network; two of these copies, a new `bytes` a read and
the join with a frame header, cost as much as the encryption. Here all tunnels of the process read into one buffer that
has room for the header in front. Nothing may keep a reference to it: what cannot be written at once is copied by the
transport (`net.WRITES_COPY`). ztunnel's buffers grow with the traffic, too (1 → 16 → 256 KiB, facts/hbone 1.8).
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from planes.mesh.frames import HEADER_SIZE

BULK_FROM_BYTES = 64 * 1024
"""One read of this size shows a busy sender."""
SMALL_BYTES = 4 * 1024
"""One read below this shows that it is not busy any more: for requests, a `bytes` is cheaper than a buffer."""
_READ_BYTES = 256 * 1024
_buffer: memoryview | None = None


def _shared() -> memoryview:
    global _buffer
    if _buffer is None:
        _buffer = memoryview(bytearray(HEADER_SIZE + _READ_BYTES))
    return _buffer


class Busy(Protocol):
    """What the reader needs of a tunnel."""

    def bulk_received(self, framed: memoryview) -> None:
        """Room for a frame header, then what was read; both are the caller's again on return."""
        ...

    def eof_received(self) -> bool: ...
    def connection_lost(self, error: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class BulkReader(asyncio.BufferedProtocol):
    """Stands in for a tunnel as its transport's protocol for as long as it is busy."""

    def __init__(self, tunnel: Busy) -> None:
        self._buffer = _shared()
        self._room = self._buffer[HEADER_SIZE:]
        self._tunnel = tunnel
        self.eof_received = tunnel.eof_received  # type: ignore[method-assign]
        self.connection_lost = tunnel.connection_lost  # type: ignore[method-assign]
        self.pause_writing = tunnel.pause_writing  # type: ignore[method-assign]
        self.resume_writing = tunnel.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, _: int) -> memoryview:
        return self._room

    def buffer_updated(self, size: int) -> None:
        self._tunnel.bulk_received(self._buffer[: HEADER_SIZE + size])
