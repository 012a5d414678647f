"""Raw TCP: so many bytes out, the same bytes back from an echo, timed as one request."""

from __future__ import annotations

import time

import gevent

from testbed.load.connection import BadAnswer, Connection

WHOLE = 200
"""The status of an echo that came back whole; TCP has none of its own."""
AT_ONCE_BYTES = 64 * 1024
"""More than that is written beside the reading: an echo that cannot write stops to read, and both would wait."""


class TcpConnection(Connection):
    def round_trip(self, request: bytes) -> tuple[int, int, float, bool]:
        assert self._socket is not None
        if len(request) <= AT_ONCE_BYTES:
            self._socket.sendall(request)
            return self._read_echo(request)
        writer = gevent.spawn(self._send, request)
        try:
            return self._read_echo(request)
        finally:
            writer.kill()

    def _send(self, request: bytes) -> None:
        assert self._socket is not None
        try:
            self._socket.sendall(request)
        except OSError:
            pass  # the reader sees the same end, and says so

    def _read_echo(self, request: bytes) -> tuple[int, int, float, bool]:
        assert self._socket is not None
        first_byte_s, received, sent = 0.0, 0, memoryview(request)
        while received < len(request):
            part = self._socket.recv(min(len(request) - received, 262144))
            if not part:
                raise BadAnswer("closed")
            first_byte_s = first_byte_s or time.monotonic()
            if part != sent[received : received + len(part)]:
                raise BadAnswer("not-the-echo")
            received += len(part)
        return WHOLE, received, first_byte_s, True
